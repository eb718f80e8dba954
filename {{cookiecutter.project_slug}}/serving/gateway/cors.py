"""What web pages of other origins may do, in the words of BentoML's own CORS middleware.

It stands before our application, so that a preflight, which carries no key, is answered.
"""

from __future__ import annotations

from typing import Any

from serving.settings import Settings

#: Beyond these, a page may read no header of a reply.
_READABLE = (
    "x-request-id",
    "x-served-version",
    "x-served-label",
    "retry-after",
    *(
        f"x-ratelimit-{figure}-{kind}"
        for figure in ("limit", "remaining", "reset")
        for kind in ("requests", "tokens")
    ),
)


def cors(settings: Settings) -> dict[str, Any]:
    """BentoML's `http.cors`: off unless an origin is named."""
    if not settings.cors.origins:
        return {"enabled": False}
    return {
        "enabled": True,
        "access_control_allow_origins": settings.cors.origins,
        "access_control_allow_methods": ["GET", "POST"],  # and no other: operators use no browser
        "access_control_allow_headers": ["authorization", "content-type", "x-request-id"],
        "access_control_expose_headers": list(_READABLE),
        "access_control_max_age": 600,
    }
