"""The short way of a request for inference: past BentoML's middlewares.

They have nothing to do for it, and take a tenth of what a short request costs: a span that is
switched off, a context for APIs of BentoML's own, a route to the one application there is, and a
time limit that ours are over before. That limit's timer outlives its request by minutes, so that
tens of thousands of them lie in memory. A middleware of one's own that requests for inference are
to meet belongs around the application in service.py, and not into BentoML's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeAlias, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

#: The application that answers a request past everybody else, if there is one.
Find: TypeAlias = Callable[[Scope], ASGIApp | None]


@cache  # one for each server, and not for each of its connections
def shortcut(config: Config, find: Find) -> ASGI3Application:
    """A server's application, with the short way before it. What tells a client's address from its
    proxy's comes before both."""
    app = cast(ASGI3Application, _Fork(find, cast(ASGIApp, config.loaded_app)))
    return ProxyHeadersMiddleware(app, config.forwarded_allow_ips) if config.proxy_headers else app


class _Fork:
    def __init__(self, find: Find, otherwise: ASGIApp) -> None:
        self._find = find
        self._otherwise = otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._find(scope) or self._otherwise
        await app(scope, receive, send)
