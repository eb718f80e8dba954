"""What is asked: seeded work, so that two runs of a seed offer the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import msgspec
import numpy as np

from loadtests.asker import Question
from loadtests.lengths import Length
from loadtests.prompts import Recorded
from loadtests.results import Operation

#: English's most frequent words: most tokenizers make one token of each.
WORDS = """
the of and to in is that it was for on are with as his they be at one have this from or had
by word but what some we can out other were all there when up use your how said an each she
which do their time if will way about many then them write would like so these her long make
thing see him two has look more day could go come did number sound no most people my over
know water than call first who may down side been now find any new work part take get place
made live where after back little only round man year came show every good me give our under
name very through just form sentence great think say help low line differ turn cause much
mean before move right boy old too same tell does set three want air well also play small
end put home read hand port large spell add even land here must big high such follow act why
ask men change went light kind off need house picture try us again animal point mother world
near
""".split()


class Plan(msgspec.Struct, frozen=True, omit_defaults=True):
    """A kind of work. Lengths are tokens.

    `prefix`: opening shared by all conversations that drew the same of `prefixes` of them, as a
    system prompt (few of them) or retrieved documents (many). `turns` of a conversation, `think`
    seconds apart, each with all that was said before. `path`: a file of the user's own instead; its
    prompts are asked in turn, with `answer` where it has no answer of its own to measure by.
    """

    operation: Operation = "chat"
    prompt: Length = Length("fixed", 64)
    answer: Length | None = Length("fixed", 32)
    prefix: Length | None = None
    prefixes: int = 1
    turns: int = 1
    think: float = 0.0
    path: str = ""


#: Named kinds of work, in tokens a chat model of today sees; `--prompt` and the rest change them.
PRESETS: dict[str, Plan] = {
    "short": Plan(),
    "chat": Plan(
        prompt=Length("lognormal", 48, 0.6),
        answer=Length("lognormal", 96, 0.5),
        prefix=Length("fixed", 192),
        turns=3,
        think=1.0,
    ),
    "rag": Plan(
        prompt=Length("uniform", 16, 64),
        answer=Length("lognormal", 128, 0.5),
        prefix=Length("uniform", 1024, 3072),
        prefixes=32,
    ),
    "long": Plan(prompt=Length("uniform", 4096, 16384), answer=Length("fixed", 256)),
    "embed": Plan(operation="embeddings", prompt=Length("uniform", 32, 256), answer=None),
}


class Scale(msgspec.Struct, frozen=True):
    """A server's tokens of a text of ours: `fixed` for the frame of a prompt, `per_word` for each
    word. Measured before the run, for every tokenizer has its own."""

    fixed: float = 8.0
    per_word: float = 1.0

    def words(self, tokens: int) -> int:
        return max(1, round((tokens - self.fixed) / self.per_word))


def measured(tokens: Callable[[str], int | None]) -> Scale | None:
    """Of a server that makes so many `tokens` of a text; None where it does not tell.

    All words are asked, a quarter of them at a time: to a small vocabulary the rarer ones are two
    tokens and three, and a prompt has as many of these as of the others.
    """
    quarters = [WORDS[n::4] for n in range(4)]
    texts = [*quarters, quarters[0] + quarters[1]]
    counts = [count for words in texts if (count := tokens(" ".join(words))) is not None]
    if len(counts) < len(texts):
        return None
    *apart, together = counts
    fixed = float(max(0, apart[0] + apart[1] - together))
    per_word = (sum(apart) - len(apart) * fixed) / len(WORDS)
    return Scale(fixed, per_word) if per_word > 0 else None


def fit(plan: Plan, context: int, scale: Scale) -> Plan:
    """The same kind of work, in a window of `context` tokens: each length is bounded by its share.
    A window that is wide enough changes nothing."""
    answer = _top(plan.answer) if plan.answer else 0
    prefix = _top(plan.prefix) if plan.prefix else 0
    turn = _top(plan.prompt) + answer
    # Each turn brings the frame of two messages with it.
    room = (context - 2 * scale.fixed * (plan.turns + 1)) / 1.1
    factor = room / max(1.0, prefix + plan.turns * turn)
    if factor >= 1:
        return plan
    return msgspec.structs.replace(
        plan,
        prompt=_bounded(plan.prompt, factor),
        answer=_bounded(plan.answer, factor) if plan.answer else None,
        prefix=_bounded(plan.prefix, factor) if plan.prefix else None,
    )


def _top(length: Length) -> float:
    """What nearly all draws are below."""
    match length.kind:
        case "fixed":
            top = length.a
        case "uniform":
            top = length.b
        case "normal":
            top = length.a + 3 * length.b
        case "lognormal":
            top = length.a * float(np.exp(3 * length.b))
    return min(top, length.most)


def _bounded(length: Length, factor: float) -> Length:
    """Smaller by `factor`, and never above."""
    most = max(1, int(_top(length) * factor))
    a = max(1.0, float(int(length.a * factor)))
    b = length.b if length.kind == "lognormal" else float(int(length.b * factor))
    return Length(length.kind, a, b, most)


class Conversation:
    """One caller's turns. After each, `heard` is told the answer, and the next contains it."""

    def __init__(self, plan: Plan, opening: str, turns: list[tuple[str, int | None]], user: str):
        self._plan = plan
        self._turns = turns
        self._user = user
        self._opening = opening
        self._messages: list[dict[str, str]] = []
        if opening and plan.operation == "chat":
            self._messages.append({"role": "system", "content": opening})

    def __iter__(self) -> Iterator[Question]:
        for text, length in self._turns:
            if self._plan.operation != "chat":
                whole = f"{self._opening} {text}".strip()
                yield Question(self._plan.operation, [], whole, length, self._user)
                continue
            self._messages.append({"role": "user", "content": text})
            yield Question("chat", list(self._messages), "", length, self._user)

    def heard(self, text: str) -> None:
        self._messages.append({"role": "assistant", "content": text or "…"})


class Workload:
    """Makes conversations. The same seed and number give the same one, in whichever process."""

    def __init__(
        self, plan: Plan, seed: int, scale: Scale, recorded: Recorded | None = None
    ) -> None:
        self.plan = plan
        self._seed = seed
        self._scale = scale
        self._recorded = recorded
        self._prefix = cache(self._make_prefix)

    def conversation(self, *number: int) -> Conversation:
        """`number`: stage and arrival, or stage, user and turn."""
        plan, user = self.plan, "load-" + "-".join(map(str, number))
        rng = np.random.default_rng((self._seed, *number))
        if self._recorded is not None:
            return Conversation(plan, *self._recorded.take(rng, plan.answer), user)
        opening = self._prefix(int(rng.integers(plan.prefixes))) if plan.prefix else ""
        turns = [
            (self._text(rng, plan.prompt.draw(rng)), plan.answer.draw(rng) if plan.answer else None)
            for _ in range(plan.turns)
        ]
        return Conversation(plan, opening, turns, user)

    def _make_prefix(self, number: int) -> str:
        assert self.plan.prefix is not None
        rng = np.random.default_rng((self._seed, 1 << 32, number))
        return self._text(rng, self.plan.prefix.draw(rng))

    def _text(self, rng: np.random.Generator, tokens: int) -> str:
        picks = rng.integers(0, len(WORDS), self._scale.words(tokens))
        return " ".join(WORDS[pick] for pick in picks)
