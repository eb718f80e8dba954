"""`GET /v1/models` and `GET /v1/models/{model}`."""

from __future__ import annotations

from typing import Literal

import msgspec


class Model(msgspec.Struct):
    """A model a client may name. `created`: when its serving version was imported, Unix seconds."""

    id: str
    created: int
    owned_by: str
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct):
    data: list[Model]
    object: Literal["list"] = "list"
