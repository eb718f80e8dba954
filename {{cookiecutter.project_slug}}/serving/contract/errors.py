"""The one error envelope, `{"error": {"message", "type", "param", "code"}}`, for every failure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import msgspec
from pydantic import BaseModel, ValidationError


class ErrorBody(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(msgspec.Struct):
    error: ErrorBody


class ApiError(Exception):
    """A failure a client may see.

    `status` is the HTTP status, `code` the stable machine-readable name, `param` the request field
    at fault and `retry_after` the seconds after which the same request may succeed.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.extra_headers = dict(headers or {})

    @property
    def type(self) -> str:
        """OpenAI's coarse class of the error, which its SDKs and many clients look at."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 403:
            return "permission_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    @property
    def headers(self) -> dict[str, str]:
        if self.retry_after is None:
            return self.extra_headers
        return {"retry-after": str(self.retry_after), **self.extra_headers}

    def body(self) -> bytes:
        return msgspec.json.encode(
            ErrorReply(ErrorBody(self.message, self.type, self.param, self.code))
        )


def invalid(message: str, param: str | None = None, code: str = "invalid_request") -> ApiError:
    return ApiError(400, code, message, param=param)


def invalid_key(problem: str) -> ApiError:
    """401; `problem` is what is wrong with it, a sentence."""
    return ApiError(401, "invalid_api_key", problem, headers={"www-authenticate": "Bearer"})


def not_allowed(message: str, param: str | None = None) -> ApiError:
    return ApiError(403, "not_allowed", message, param=param)


def model_not_found(model: str) -> ApiError:
    return ApiError(
        404,
        "model_not_found",
        f"The model {model!r} does not exist; GET /v1/models lists what is served.",
        param="model",
    )


def model_loading(model: str, retry_after: int = 2) -> ApiError:
    return ApiError(
        503,
        "model_loading",
        f"The model {model!r} is loading; ask again in a moment.",
        retry_after=retry_after,
    )


def model_failed(model: str) -> ApiError:
    return ApiError(
        503,
        "model_failed",
        f"The model {model!r} could not be started; the service's log says why.",
        retry_after=30,
    )


def shutting_down() -> ApiError:
    return ApiError(
        503, "shutting_down", "The service is stopping; ask another replica.", retry_after=1
    )


def replaced(version: str) -> ApiError:
    message = f"The version {version} was taken out of service before it had said all; ask again."
    return ApiError(503, "version_replaced", message, retry_after=1)


def engine_error(message: str = "The engine failed while it answered; ask again.") -> ApiError:
    return ApiError(502, "engine_error", message)


def overloaded(message: str) -> ApiError:
    return ApiError(503, "overloaded", message, retry_after=1)


def limits_unknown() -> ApiError:
    return ApiError(
        503,
        "limits_unavailable",
        "The limits cannot be checked at the moment; ask again.",
        retry_after=2,
    )


def internal_error() -> ApiError:
    return ApiError(500, "internal_error", "The service failed; its log says why.")


def timed_out(message: str) -> ApiError:
    return ApiError(504, "timeout", message)


def request_timeout(part: str, seconds: float) -> ApiError:
    return ApiError(
        408, "request_timeout", f"The request's {part} took over {seconds:g} s to come."
    )


def head_too_large(limit: int) -> ApiError:
    return ApiError(431, "head_too_large", f"The request's head may have {limit} bytes at most.")


def bad_http(problem: str = "This is not valid HTTP/1.1.") -> ApiError:
    """400; `problem` is a sentence."""
    return ApiError(400, "invalid_http", problem)


def context_length_exceeded(limit: int, prompt: int | None, param: str) -> ApiError:
    asked = f" and the prompt has {prompt}" if prompt is not None else ""
    return ApiError(
        400,
        "context_length_exceeded",
        f"The model's context holds {limit} tokens{asked}; "
        "shorten the prompt or ask for fewer tokens.",
        param=param,
    )


def unsupported(capability: str, model: str, param: str | None) -> ApiError:
    """`param` is the field that asked for it; None when the whole endpoint did."""
    advice = "leave the field out" if param else "ask another endpoint or model"
    return ApiError(
        400,
        UNSUPPORTED,
        f"The engine that serves {model!r} lacks the capability {capability!r}; {advice}.",
        param=param,
    )


# A union's member is part of pydantic's error location, not of the path a client knows.
_UNION_MEMBER = re.compile(
    r"^(str|int|float|bool|constrained-\w+|(list|literal)\[.*|[A-Z]\w*|function-.*)$"
)
# So is a tagged union's tag, which may also be the name of a field.
_TAGS = frozenset(
    {"system", "developer", "user", "assistant", "tool", "json_object", "json_schema"}
    | {"text", "image_url", "input_text", "output_text", "input_image"}
)


#: The code, and pydantic's error type, of a known field that asks for what is not offered.
UNSUPPORTED = "unsupported_by_engine"
#: pydantic's error type for a fault that a check of the whole request found.
WRONG_FIELD = "wrong_field"
#: Problems in one body beyond which they are only counted.
MANY = 200


def from_validation(error: ValidationError, model: type[BaseModel]) -> ApiError:
    """The first problem pydantic found, as a 400 that names the field the way the client wrote it.

    Where a union offered several shapes, the problem found deepest is the one the client meant, and
    of two as deep the one that is more than the wrong type.
    """
    if error.error_count() > MANY:  # listing them would take seconds, and nobody reads them
        return invalid(f"The body has {error.error_count()} wrong or unknown fields.")
    problems = error.errors(include_url=False, include_context=True, include_input=False)
    if problems[0]["type"] == UNSUPPORTED:
        field = problems[0]["ctx"]["field"]
        message = f"This service does not offer {field!r}; leave the field out."
        return invalid(message, field, UNSUPPORTED)
    if problems[0]["type"] == WRONG_FIELD:
        field, reason = problems[0]["ctx"]["field"], problems[0]["ctx"]["reason"]
        return invalid(f"Invalid {field!r}: {reason}.", field)
    first = field_path(problems[0]["loc"])
    problem = max(
        (p for p in problems if _within(field_path(p["loc"]), first)),
        key=lambda p: (len(p["loc"]), not p["type"].endswith("_type")),
    )
    param = field_path(problem["loc"])
    if problem["loc"][-1:] == ("[key]",):  # of a mapping: a name the client made up
        param = field_path(problem["loc"][:-2], str(problem["loc"][-2]))
    if problem["type"] == "extra_forbidden":
        param = field_path(problem["loc"][:-1], str(problem["loc"][-1]))
        near = get_close_matches(str(problem["loc"][-1]), list(model.model_fields), 1)
        hint = f"; did you mean {near[0]!r}?" if near and len(problem["loc"]) == 1 else ""
        return invalid(f"Unknown field {param!r}{hint}", param, "unknown_field")
    if problem["type"] == "json_invalid":
        return invalid(f"The body is not valid JSON: {problem['msg']}.", code="invalid_json")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"].startswith("union_tag_"):  # the field that names the shape, as `role` does
        context = problem["ctx"]
        param = f"{param}.{context['discriminator'].strip(chr(39))}"
        expected = context.get("expected_tags")
        message = f"Input should be one of {expected}" if expected else "Field required"
    return invalid(f"Invalid {param!r}: {message}." if param else f"{message}.", param or None)


def field_path(loc: Sequence[int | str], unknown: str | None = None) -> str:
    """`("messages", 0, "user", "content", "str")` as `messages[0].content`.

    `unknown` is the client's own name for a field, which may look like anything.
    """
    path = ""
    for at, part in enumerate(loc):
        if isinstance(part, int):
            path += f"[{part}]"
            continue
        # A tag stands between an index, or the name of a field of that type, and a field.
        last = at == len(loc) - 1 and unknown is None
        typed = at > 0 and (isinstance(loc[at - 1], int) or str(loc[at - 1]).endswith("format"))
        tag = part in _TAGS and typed and not last
        if not tag and not _UNION_MEMBER.match(part):
            path += f".{part}" if path else part
    if unknown is not None:
        path += f".{unknown}" if path else unknown
    return path


def _within(path: str, outer: str) -> bool:
    return path == outer or path.startswith((f"{outer}.", f"{outer}["))
