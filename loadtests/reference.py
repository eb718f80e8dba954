"""The yardstick: the least a relay in Python can do, a bare uvicorn that passes bytes on untouched.

No validation, no translation, no routing, no log. Run with `ENGINE=http://host:port KEY=...` as
`uvicorn reference:app`.
"""

from __future__ import annotations

import os
from typing import Any

import aiohttp

ENGINE = os.environ.get("ENGINE", "")
HEADERS = {
    "content-type": "application/json",
    "authorization": f"Bearer {os.environ.get('KEY', '')}",
}
_session: aiohttp.ClientSession | None = None


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Relays every request to the engine."""
    global _session  # noqa: PLW0603 - one process, one session
    if scope["type"] != "http":
        return
    if _session is None:
        _session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    async with _session.request(
        scope["method"], ENGINE + scope["path"], data=body, headers=HEADERS
    ) as reply:
        headers = [(b"content-type", reply.headers.get("content-type", "").encode())]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        async for data in reply.content.iter_any():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
