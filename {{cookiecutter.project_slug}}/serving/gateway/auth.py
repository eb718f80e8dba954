"""Who asks, and what they may: by their key, once the service wants keys."""

from __future__ import annotations

import logging
import os
import socket
import sys
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from starlette.requests import Request
from starlette.types import Scope

from serving.accounts import keys
from serving.accounts.keys import ApiKey
from serving.accounts.ring import KeyRing
from serving.contract.errors import ApiError, invalid_key, not_allowed

log = logging.getLogger("bentoml.serving")

_LOCAL_NAMES = {"localhost", "localhost.localdomain"}
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")

Mode = Literal["auto", "keys", "open_to_everybody"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever has that key; without one, whoever asks from that address. `id` is the same for all
    requests of one caller."""

    id: str
    key: ApiKey | None = None

    def may(self, model: str) -> bool:
        return self.key is None or self.key.models is None or model in self.key.models

    def check(self, address: str) -> None:
        """Raises `ApiError` (403) for a model address the key does not open."""
        if self.key is None:
            return
        name, at, label = address.partition("@")
        name, colon, _ = name.partition(":")
        model = name.partition("/")[0]
        if not self.may(model):
            raise not_allowed(f"This key is not for the model {model}.", "model")
        if self.key.labels is not None:
            if colon:
                raise not_allowed("This key is for labels: name no version.", "model")
            if at and label not in self.key.labels:
                raise not_allowed(f"This key is not for the label {label}.", "model")


class Gate:
    """Lets callers in. Without a ring of keys, or while no keys are `wanted`, all of them."""

    def __init__(self, ring: KeyRing | None = None, mode: Mode = "auto") -> None:
        self.wanted = ring is not None and (
            mode == "keys" or (mode == "auto" and not on_loopback())
        )
        self._ring = ring

    def tell(self) -> None:
        """Says in the log who is let in."""
        if self.wanted and not self._ring:
            log.warning("nobody has a key yet; make one: serving keys create NAME")
        elif not self.wanted:
            level = logging.INFO if on_loopback() else logging.WARNING
            log.log(level, "everybody who reaches the service may use it: it wants no keys")

    def enter(self, scope: Scope, need: keys.Scope, *or_else: keys.Scope) -> Caller:
        """Raises `ApiError`: 401 without a valid key, 403 when it is for none of these."""
        if self._ring is None or not self.wanted:
            return Caller((scope.get("client") or ("",))[0])
        presented = _presented(scope)
        if presented is None:
            raise invalid_key("Send your key as the header Authorization: Bearer sk-…")
        key = self._ring.find(presented)
        if key is None:
            raise invalid_key("This key is not valid: it is mistyped, expired or revoked.")
        if key.scopes.isdisjoint((need, *or_else)):
            raise not_allowed(f"This key lacks the scope {need}.")
        return Caller(key.id, key)

    def admit_operator(self, request: Request) -> Caller:
        """Who may see and change what is served: a key with the scope `admin`, or, while no keys
        are wanted, a program on this machine. Raises `ApiError`."""
        if not self.wanted:
            check_local(request)
        return self.enter(request.scope, "admin")


def check_local(request: Request) -> None:
    """Raises `ApiError` (403) unless a program on this machine asks, under a name of this machine.

    Somebody else's browser page can reach a loopback port too, by a name of its own that leads
    there; and behind a proxy on this machine everybody seems to be local.
    """
    client = request.client.host if request.client else ""
    name = (request.url.hostname or "").lower()
    forwarded = any(header in request.headers for header in _FORWARDED)
    if not _is_loopback(client) or not (name in _LOCAL_NAMES or _is_loopback(name)) or forwarded:
        raise ApiError(
            403, "local_only", "The admin API answers only to programs on the service's machine."
        )


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def _presented(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, key = value.decode("latin-1").partition(" ")
            return key.strip() if kind.lower() == "bearer" else None
    return None


def on_loopback() -> bool:
    """Whether only this machine can reach the service. False also when that does not show."""
    if "--fd" not in sys.argv[:-1]:  # where BentoML's worker is told its socket
        return False
    descriptor = int(sys.argv[sys.argv.index("--fd") + 1])
    with socket.socket(fileno=os.dup(descriptor)) as listening:
        if listening.family == socket.AF_UNIX:
            return True
        address = listening.getsockname()[0]
    return ip_address(address).is_loopback
