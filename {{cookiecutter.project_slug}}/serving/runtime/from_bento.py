"""A service that runs from a Bento: it writes nothing into it, and finds the models that are in it.

`bentoml serve` in the project's own folder has no Bento, and nothing here happens.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from serving.runtime.files import replace_file
from serving.runtime.store import bentoml_home
from serving.settings import places


def settle(project: Path) -> None:
    """`project` is where service.py lies; it is a Bento's when bento.yaml lies above it.

    State goes below BENTOML_HOME, unless SERVING_STATE says where, and versions that the model
    store lacks become links to the Bento's: an image or a BentoCloud deployment has them inside.
    """
    bento = project.parent
    if not (bento / "bento.yaml").is_file():
        return
    home = bentoml_home()
    os.environ.setdefault(places.STATE, str(home / "serving" / "state"))
    # A store that is mounted read-only has what it has.
    with contextlib.suppress(OSError):
        _link(bento / "models", home / "models")


def _link(inside: Path, models: Path) -> None:
    for link in models.glob("*/*"):
        if link.is_symlink() and not link.exists():  # of the image that was here before
            link.unlink(missing_ok=True)
    for version in sorted(inside.glob("*/*/model.yaml")):
        folder = models / version.parent.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (folder / version.parent.name).symlink_to(version.parent)
            replace_file(folder / "latest", version.parent.name)
