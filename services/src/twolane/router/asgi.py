"""The few words of ASGI that the endpoints speak: headers, bodies with a limit, JSON answers, errors.

Endpoints are plain ASGI callables: no middleware stands between a token and its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections.abc import Sequence
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from twolane.core.errors import BodyTooLarge, Cancelled, InvalidRequest, TwolaneError

Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
# How much of a body that is too large is read all the same, and for how long.
_DISCARD_BYTES = 64 << 20
_DISCARD_TIMEOUT_S = 10.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


def header(scope: Scope, name: bytes) -> str:
    """Value of a request header (lower-case name), or ""."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return ""


def client_request_id(scope: Scope) -> str:
    """The client's own x-request-id if it is fit for logs and headers, else a new one."""
    given = header(scope, b"x-request-id")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


async def read_json(scope: Scope, receive: Receive, max_bytes: int) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        BodyTooLarge: it is longer than `max_bytes`.
        InvalidRequest: it is no JSON object, or not UTF-8.
        Cancelled: the client went away before the end of the body.
    """
    body = await _read_body(scope, receive, max_bytes)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


async def _read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    announced = header(scope, b"content-length")
    if announced.isdecimal() and int(announced) > max_bytes:
        if not header(scope, b"expect"):
            await _discard(receive)
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client went away while it sent the body")
        part = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            await _discard(receive)
            raise _too_large(max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _discard(receive: Receive) -> None:
    """Reads on without keeping anything: most clients look for a response only when all is sent."""
    left = _DISCARD_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_TIMEOUT_S):
            message = await receive()
            while message.get("more_body", False) and left > 0:
                left -= len(message.get("body", b""))
                message = await receive()


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than the limit of {max_bytes} bytes")


async def send_body(send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
    """One whole response."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


def error_body(error: TwolaneError) -> bytes:
    """An error in OpenAI's shape."""
    kind = _TYPES.get(
        error.http_status, "server_error" if error.http_status >= 500 else "invalid_request_error"
    )
    content = {"message": error.message, "type": kind, "param": error.param or None, "code": error.code}
    return orjson.dumps({"error": content})


async def send_error(send: Send, error: TwolaneError, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """An error response; Retry-After tells when a retry makes sense."""
    extra: Headers = [*headers, JSON]
    if error.retry_after_s:
        extra.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
    if error.http_status == 401:
        extra.append((b"www-authenticate", b"Bearer"))
    await send_body(send, error.http_status, extra, error_body(error))
