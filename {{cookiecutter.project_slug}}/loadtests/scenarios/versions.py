"""Versions of the model under test: which there are, which is production, and that it is so again
when the scenario is over."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from loadtests.own_service import OwnService
from loadtests.service import CannotRun
from loadtests.session import Session


class Production:
    """Production of the model, which is at the end what it was."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._path = f"/models/{session.model}/labels/production"

    def __enter__(self) -> Production:
        state = model_state(self._session)
        production = state["labels"].get("production") or {}
        if not production.get("version"):
            raise CannotRun(
                f"{self._session.model} has no version in production: `serving status` says why."
            )
        self.version: int = production["version"]
        self._pinned: bool = state["pinned"]
        # While it is not pinned it follows the newest version by itself: an import would move it.
        self.move(self.version)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.move(self.version)
        if not self._pinned:
            self._session.service.admin("DELETE", self._path)

    def move(self, version: int) -> None:
        self._session.service.admin("PUT", self._path, {"version": version, "load": True})


def model_state(session: Session) -> dict[str, Any]:
    """Raises `CannotRun` for a service of others, which has no versions."""
    models = session.service.status()["models"]
    if session.model not in models:
        raise CannotRun(
            f"Scenarios with versions need a model's own name, without label or version: one of "
            f"{', '.join(models)}."
        )
    state: dict[str, Any] = models[session.model]
    return state


def other_version(session: Session, version: int) -> int:
    """The version to go to: --version, another that is loaded, or one made for this run. Raises
    `CannotRun`."""
    if session.options.version is not None:
        if session.options.version == version:
            raise CannotRun(f"{session.model}:{version} is production already; name another.")
        return session.options.version
    service = session.service
    if isinstance(service, OwnService):
        numbers = service.numbers(session.model)
        if numbers == [version]:
            service.import_again(session.model, version)
            numbers = service.numbers(session.model)
            session.note("import", f"{session.model}:{numbers[-1]} has the weights of {version}.")
    else:
        numbers = [entry["version"] for entry in model_state(session)["versions"]]
    others = [number for number in numbers if number != version]
    if not others:
        raise CannotRun(
            f"{session.model} has one loaded version: name one of the store with --version."
        )
    return max(others)
