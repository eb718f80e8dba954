"""`state/routing.json` on the disk: read, watched, and replaced whole.

A kill at any moment leaves the old document or the new one. Whoever changes it says from which
revision; when somebody was faster the change is refused, so that no operator overwrites another.
"""

from __future__ import annotations

import errno
import json
import logging
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from serving.runtime.files import replace_file
from serving.runtime.wanted import Routing

log = logging.getLogger("bentoml.serving")


class RoutingFileError(Exception):
    """The file cannot be read or written. The message says why and what to do."""


class RevisionConflict(Exception):
    """The document is no longer at the revision the change was made from."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"somebody changed the routing meanwhile; it is at revision {revision}")
        self.revision = revision


class RoutingFile:
    """Holds the newest good document as `routing`. `fault` says what is wrong with the file on the
    disk when that is newer and cannot be used; empty when nothing is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.routing = Routing()
        self.fault = ""
        self._text: str | None = None
        self._lock = threading.RLock()

    def load(self) -> None:
        """For the start, when there is no good document to go on with. Raises
        `RoutingFileError`."""
        self.refresh()
        if self.fault:
            raise RoutingFileError(self.fault)

    def refresh(self) -> bool:
        """Takes over what is on the disk. Returns whether that is news."""
        with self._lock:
            return self._refresh()

    def _refresh(self) -> bool:
        try:
            text = self.path.read_text("utf-8") if self.path.exists() else None
        except (OSError, UnicodeDecodeError) as error:
            return self._refuse(f"{self.path} cannot be read ({error}); make it readable.")
        if text == self._text:
            return False
        first, self._text = self._text is None and not self.fault, text
        if text is None:
            return self._refuse(f"{self.path} is gone; put it back, or restart to do without.")
        try:
            routing = Routing.model_validate_json(text)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = ".".join(map(str, problem["loc"])) or "the document"
            return self._refuse(
                f"{self.path}: {place}: {problem['msg']}; mend it, or put an earlier one back."
            )
        if self.fault:
            log.info("%s is good again", self.path)
            self.fault = ""
        # Somebody who edits by hand does not count: everybody else must see that it is another.
        revision = max(routing.revision, self.routing.revision + 1)
        self.routing = routing if first else routing.model_copy(update={"revision": revision})
        return True

    def change(self, make: Callable[[Routing], Routing], *, revision: int | None = None) -> Routing:
        """Writes what `make` makes of the newest document, and holds it from then on. A read-only
        file is somebody else's, as on Ray, also where this user could replace it.

        With `revision`, only if the document is at that. Raises `RevisionConflict`,
        `RoutingFileError`, and what `make` raises; then nothing is changed.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock, FileLock(self.path.with_name(f".{self.path.name}.lock")):
                self._refresh()
                if self.fault:
                    raise RoutingFileError(self.fault)
                if self.path.exists() and not self.path.stat().st_mode & stat.S_IWUSR:
                    raise PermissionError(errno.EROFS, "it is read-only")
                if revision is not None and revision != self.routing.revision:
                    raise RevisionConflict(self.routing.revision)
                routing = make(self.routing)
                text = json.dumps(routing.model_dump(mode="json"), indent=2) + "\n"
                replace_file(self.path, text)
                self.routing, self._text = routing, text
        except OSError as error:
            raise RoutingFileError(
                f"{self.path} cannot be written ({error.strerror}); change it where it comes from."
            ) from None
        return routing

    def _refuse(self, fault: str) -> bool:
        news = fault != self.fault
        if news:
            log.error("%s", fault)
        self.fault = fault
        return news
