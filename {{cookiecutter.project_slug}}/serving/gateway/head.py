"""What a request's head may say: what two readers of HTTP could read in two ways is refused.

httptools refuses most of it, as two lengths, a length beside a transfer coding, bare line feeds and
folded headers. The rest is here. Behind a proxy that reads a request in another way than the
service does, what is the body to one would be a second request to the other.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from serving.contract.errors import bad_http, head_too_large

#: Bytes of a request's line and headers.
HEAD_LIMIT = 64 * 1024

_CONTROL = re.compile(rb"%(?:[01].|7F)", re.IGNORECASE)
#: What a host's name or address, and its port, are made of.
_OF_HOSTS = (string.ascii_letters + string.digits + "_.:[]-").encode()


def check_head(target: bytes, headers: Sequence[tuple[bytes, bytes]], version: str) -> None:
    """Raises `ApiError` (400). The names of `headers` are in lower case."""
    if version not in ("1.1", "1.0"):
        raise bad_http()
    host: bytes | None = None
    for name, value in headers:
        if name == b"host":
            if host is not None:
                raise bad_http("The request names two hosts.")
            if value.translate(None, _OF_HOSTS):
                raise bad_http("The request's host is not one.")
            host = value
        elif name == b"transfer-encoding" and (value.lower() != b"chunked" or version != "1.1"):
            raise bad_http("Send the body with its length, or chunked and coded in no other way.")
    if host is None and version == "1.1":
        raise bad_http("The request names no host.")
    if not target.startswith(b"/"):
        _check_whole(target, host)
    elif b"#" in target:
        raise bad_http("The request's target has a fragment.")
    if b"%" in target and _CONTROL.search(target.partition(b"?")[0]):
        raise bad_http("The request's path has a control character.")


def check_size(target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises `ApiError` (431)."""
    size = len(target) + sum(len(name) + len(value) + 4 for name, value in headers)
    if size > HEAD_LIMIT:
        raise head_too_large(HEAD_LIMIT)


def _check_whole(target: bytes, host: bytes | None) -> None:
    """A target that is a whole URL, as for a proxy, must be of the host that is named."""
    scheme, found, rest = target.partition(b"://")
    authority, slash, _ = rest.partition(b"/")
    if not found or scheme.lower() not in (b"http", b"https") or not slash or b"#" in target:
        raise bad_http("The request's target is not a path.")
    if host is None or authority.lower() != host.lower():
        raise bad_http("The request's target is of another host than it names.")
