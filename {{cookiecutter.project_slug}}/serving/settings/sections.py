"""What the sections of serving.yaml are made of: values, and paths beside the file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from serving.settings.places import engine_home

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9_.-]*[a-z0-9])?$", max_length=63)]
Count = Annotated[int, Field(ge=1)]
#: What the URL of a Redis may say besides, as redis-py names it.
_TLS_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def checks_surroundings(info: ValidationInfo) -> bool:
    """Whether the files and variables that the settings name must be there already."""
    return bool((info.context or {}).get("surroundings"))


def _home(path: Path, info: ValidationInfo) -> Path:
    return _placed(engine_home(path) if info.context else path, info)


def _placed(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    return Path(os.path.abspath(folder / path)) if folder else path


def _file(path: Path, info: ValidationInfo) -> Path:
    if checks_surroundings(info) and not path.is_file():
        raise ValueError(f"there is no file {path}")
    return path


def _folder(path: Path, info: ValidationInfo) -> Path:
    if checks_surroundings(info) and not path.is_dir():
        raise ValueError(f"there is no folder {path}")
    return path


def _variable(name: str, info: ValidationInfo) -> str:
    if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name):  # never shown: it may be the secret itself
        raise ValueError(
            "write the name of an environment variable, in capitals, digits and _, never the secret"
        )
    if checks_surroundings(info) and not os.environ.get(name):
        raise ValueError(f"the environment variable {name} is not set; it must hold the secret")
    return name


def _redis(name: str, info: ValidationInfo) -> str:
    if checks_surroundings(info) and not _is_redis(os.environ[name]):  # nor is the URL shown
        raise ValueError(
            f"the environment variable {name} must hold redis://USER:PASSWORD@HOST:PORT/NUMBER, "
            "with any of its parts but the host left out, or rediss:// for TLS"
        )
    return name


def _is_redis(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # which is checked only now
        options = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
    except ValueError:
        return False
    return (
        parts.scheme in ("redis", "rediss")
        and bool(parts.hostname)
        and re.fullmatch(r"/?|/\d+", parts.path) is not None
        and not parts.fragment
        and options.keys() <= (_TLS_OPTIONS if parts.scheme == "rediss" else set())
    )


_Path = Annotated[Path, AfterValidator(_placed)]
#: A path relative to serving.yaml's own folder, and what must be there when the service starts.
Placed = Annotated[_Path, Field(validate_default=True)]
#: The same for an engine's environment, which SERVING_ENGINES may place elsewhere.
Home = Annotated[Path, AfterValidator(_home), Field(validate_default=True)]
PresentFile = Annotated[_Path, AfterValidator(_file)]
PresentFolder = Annotated[_Path, AfterValidator(_folder)]
#: The name of an environment variable that must be set when the service starts.
Variable = Annotated[str, AfterValidator(_variable)]
#: Such a variable with the URL of a Redis.
RedisVariable = Annotated[Variable, AfterValidator(_redis)]
