"""Refuse impossible answers before a file is written, and say what to answer instead."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping

# JSON in a raw string: quotes and backslashes in an answer stay inside it.
ANSWERS: dict[str, object] = json.loads(r"""{{ cookiecutter | jsonify }}""")

SLUG = re.compile(r"[a-z][a-z0-9-]{0,48}[a-z0-9]")
# What BentoML accepts as a model's name (bentoml/_internal/tag.py).
MODEL_NAME = re.compile(r"(?=.{1,63}$)[a-z0-9]([a-z0-9_.-]*[a-z0-9])?")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[A-Za-z0-9][\w./-]*)?", re.ASCII)
PATH = re.compile(r"[\w./~][\w./~+@-]*")
YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off"}
CONTROL = re.compile(r"[\x00-\x1f\x7f]")

DEMO_POSITIONS = 1024


def whole_number(text: str) -> int | None:
    """The number, or None when the text is not a plain non-negative decimal one."""
    return int(text) if re.fullmatch(r"0|[1-9][0-9]{0,8}", text) else None


def name_refusals(answers: Mapping[str, str]) -> Iterator[str]:
    if not answers["project_name"].strip():
        yield "project_name is empty: answer a name such as LLM Service."
    if not SLUG.fullmatch(answers["project_slug"]):
        yield (
            f"project_slug {answers['project_slug']!r} is no usable folder name: answer 2 to 50 "
            "lower-case letters, digits and dashes, starting with a letter, such as llm-service."
        )
    if answers["project_slug"] in YAML_WORDS:
        yield (
            f"project_slug {answers['project_slug']!r} is a word of YAML's own, not a name, in the "
            "deployment files: answer another, such as llm-service."
        )
    for question in ("project_name", "description", "author"):
        if CONTROL.search(answers[question]):
            yield f"{question} holds a control character: answer one line of plain text."
    if not MODEL_NAME.fullmatch(answers["served_model_name"]):
        yield (
            f"served_model_name {answers['served_model_name']!r} cannot be stored: answer up to 63 "
            "lower-case letters, digits, dots, dashes and underscores, starting and ending with a "
            "letter or digit, such as chat."
        )


def model_refusals(answers: Mapping[str, str]) -> Iterator[str]:
    source, model = answers["model_source"], answers["model_id"]
    if source == "huggingface" and not HUB_ID.fullmatch(model):
        yield (
            f"model_id {model!r} is no Hugging Face repository: answer ORG/NAME or "
            "ORG/NAME@REVISION, such as Qwen/Qwen3-0.6B."
        )
    if source == "local" and not model.strip():
        yield "model_id is empty: answer the path of the model's folder, such as models/my-model."
    elif source == "local" and not PATH.fullmatch(model):
        yield (
            f"model_id {model!r} holds characters that make cannot pass on: answer a path of "
            "letters, digits and . _ ~ + @ - / such as models/my-model."
        )


def size_refusals(answers: Mapping[str, str]) -> Iterator[str]:
    demo = answers["model_source"] == "demo"
    length = whole_number(answers["max_context_length"])
    if not length:
        yield (
            f"max_context_length {answers['max_context_length']!r} is no positive whole number: "
            "answer a number of tokens such as 4096."
        )
    elif demo and length > DEMO_POSITIONS:
        yield (
            f"max_context_length {length} is more than the {DEMO_POSITIONS} positions of the demo "
            "model: answer 512, or choose another model_source."
        )
    gpus = whole_number(answers["gpus_per_replica"])
    if gpus is None:
        yield (
            f"gpus_per_replica {answers['gpus_per_replica']!r} is no whole number: "
            "answer 0 for a CPU, or 1 or more."
        )
    elif gpus > 1:
        if demo:
            yield f"gpus_per_replica {gpus} is too many for the tiny demo model: answer 0 or 1."
        if answers["engine"] == "transformers":
            yield (
                f"gpus_per_replica {gpus} is more than transformers can use for one replica: "
                "answer 1, or choose the engine vllm or sglang."
            )


def refusals(answers: Mapping[str, str]) -> Iterator[str]:
    """Why these answers cannot become a project; nothing when they can."""
    yield from name_refusals(answers)
    yield from model_refusals(answers)
    yield from size_refusals(answers)


def main() -> int:
    answers = {question: str(answer) for question, answer in ANSWERS.items()}
    reasons = list(refusals(answers))
    for reason in reasons:
        print(reason, file=sys.stderr)
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
