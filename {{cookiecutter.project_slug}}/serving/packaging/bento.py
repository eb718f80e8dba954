"""A Bento of this project: its files, its image's recipe, and exact model versions by their tags.

BentoML keeps the tags in bento.yaml; the models' files stay in the model store until the Bento is
exported or becomes an image, and then go with it. The Bento's version is a checksum of all that
went in, so that the same inputs are the same Bento. Two builds differ in one line, the time in
bento.yaml, unless SOURCE_DATE_EPOCH says which time to write.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import bentoml
from bentoml.exceptions import BentoMLException

from serving.packaging.contents import NotPacked, stage
from serving.packaging.recipe import BASE_IMAGE
from serving.runtime.plan import policy_numbers
from serving.runtime.startup import only_described
from serving.runtime.store import ModelStore, Version
from serving.settings import OpenAICompatibleEngine, Settings, load_settings, places

_EPOCH = "SOURCE_DATE_EPOCH"
_CREATED = re.compile(r"^creation_time: .*$", re.MULTILINE)


@dataclass(frozen=True)
class Built:
    """`new`: whether it was built now, and not there already."""

    tag: str
    path: Path
    models: list[Version]
    new: bool


def production(settings: Settings, store: ModelStore) -> list[Version]:
    """What the service would load from this store. Raises `StoreError` for a model without a
    version."""
    chosen = []
    for name in settings.models:
        if isinstance(settings.engine_of(name, 1), OpenAICompatibleEngine):
            continue
        numbers = policy_numbers(settings, name, store.numbers(name))
        chosen += [store.get(name, number) for number in numbers] or [store.latest(name)]
    return chosen


def build(project: Path, models: Sequence[str] | None) -> Built:
    """Builds the Bento with the versions `models`, as in `chat:3`, or with those that the service
    would load. One with the same inputs that is there already is left as it is.

    Raises `NotPacked`, `SettingsError` and `StoreError`.
    """
    if not os.environ.get(_EPOCH, "0").isdecimal():
        raise NotPacked(f"{_EPOCH} must be seconds since 1970, as `git log -1 --format=%ct` gives.")
    for variable in places.ALL:  # this machine's: the Bento has the project's own
        os.environ.pop(variable, None)
    store = ModelStore()
    with tempfile.TemporaryDirectory(prefix="bento-") as scratch:
        folder = Path(scratch)
        digest = hashlib.sha256(stage(project, folder).encode())
        settings = load_settings(folder / "serving.yaml", surroundings=False)
        if models is None:
            chosen = production(settings, store)
        else:
            chosen = [store.find(tag) for tag in dict.fromkeys(models)]
        for version in chosen:
            digest.update(f"{version.tag} {version.files}\n".encode())
        digest.update(f"{bentoml.__version__} {os.environ.get(BASE_IMAGE, '')}".encode())
        name, number = settings.service.name, digest.hexdigest()[:12]
        tag = f"{name}:{number}"
        path = store.home / "bentos" / name / number
        new = not (path / "bento.yaml").is_file()
        if new:
            _build(folder, name, number, chosen)
            _date(path / "bento.yaml")
    return Built(tag, path, chosen, new)


def _build(folder: Path, name: str, number: str, models: list[Version]) -> None:
    try:
        with only_described():
            bentoml.build(
                "service:Service",
                name=name,
                version=number,
                models=[version.tag for version in models],
                build_ctx=str(folder),
                description=f"{name}: an OpenAI-compatible API in front of a language model.",
            )
    except BentoMLException as error:
        raise NotPacked(f"BentoML could not build the Bento: {error}.") from None


def _date(described: Path) -> None:
    if epoch := os.environ.get(_EPOCH):
        created = datetime.fromtimestamp(int(epoch), UTC).isoformat()
        text = _CREATED.sub(f"creation_time: '{created}'", described.read_text("utf-8"))
        described.write_text(text, "utf-8")
