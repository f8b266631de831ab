"""Replies as ASGI applications, and how bodies of requests are read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from ..openai.errors import ApiError
from .spec import Limits

JSON = "application/json"


class Reply:
    """A reply with a body of bytes."""

    def __init__(self, body: bytes, *, status: int = 200, kind: str = JSON, headers: Mapping[str, str] = {}) -> None:
        self.status = status
        self._body = body
        self._headers = {"content-type": kind, "content-length": str(len(body)), **headers}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(self.status, self._headers))
        await send({"type": "http.response.body", "body": self._body})


class JsonReply(Reply):
    """A reply with a struct, or with plain values, as JSON."""

    def __init__(self, content: Any, *, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        super().__init__(msgspec.json.encode(content), status=status, headers=headers)


class ErrorReply(JsonReply):
    """A reply with an error. After a body that was not read, the connection must be closed (`headers`)."""

    def __init__(self, error: ApiError, headers: Mapping[str, str] = {}) -> None:
        super().__init__(error.answer, status=error.status, headers=headers)


def start(status: int, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the message that begins a reply."""
    encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": encoded}


async def read_json_body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request. Raises ApiError for another type (415), its size (413) or its time (408).

    Raises ClientDisconnect if the client goes before the body is whole.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        what = f"The content type must be {JSON}, not '{kind[:100]}'"
        raise ApiError(415, what, code="unsupported_media_type")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limits.body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            return await _read(request, limits)
    except TimeoutError as error:
        what = f"The body was not complete after {limits.body_timeout_s:g} s"
        raise ApiError(408, what, code="timeout") from error


async def _read(request: Request, limits: Limits) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limits.body_bytes:
            raise _too_large(limits)
    return bytes(body)


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"The body is larger than {limits.body_bytes:,} bytes", code="body_too_large")


__all__ = ["ClientDisconnect", "ErrorReply", "JsonReply", "Reply", "read_json_body", "start"]
