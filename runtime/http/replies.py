"""Replies as ASGI applications, and how bodies of requests are read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from ..openai.errors import BUSY, ApiError
from .spec import SMALL_BODY_BYTES, Limits

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


class BodyRoom:
    """Room for bodies that are received or wait to be read; all bodies of a server share it."""

    def __init__(self, limit_bytes: int) -> None:
        self.left_bytes = limit_bytes

    @contextmanager
    def body(self) -> Iterator[BodyShare]:
        """Yield the share of one body, which is given back at the end."""
        share = BodyShare(self)
        try:
            yield share
        finally:
            self.left_bytes += share.taken

    def take(self, count: int) -> None:
        """Take room. Raises ApiError (429) if there is none."""
        if count > self.left_bytes:
            raise ApiError(429, "Too many large bodies wait to be read", kind=BUSY, code="busy")
        self.left_bytes -= count


class BodyShare:
    """Room that one body takes; none up to `SMALL_BODY_BYTES`."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self.taken = 0

    def grow_to(self, size: int) -> None:
        """Take room for a body of this size. Raises ApiError (429)."""
        if size > max(SMALL_BODY_BYTES, self.taken):
            self._room.take(size - self.taken)
            self.taken = size


async def read_json_body(request: Request, limits: Limits, share: BodyShare) -> bytes:
    """Return the body of a request, which is JSON. Raises as `read_body_of`."""
    return await read_body_of(request, JSON, limits, share)


async def read_body_of(request: Request, wanted: str, limits: Limits, share: BodyShare) -> bytes:
    """Return the body of a request of the content type `wanted`.

    Raises ApiError for another type (415), its size (413), its time (408), or if too many others wait (429).

    Raises ClientDisconnect if the client goes before the body is whole.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        what = f"The content type must be {wanted}, not '{kind[:100]}'"
        raise ApiError(415, what, code="unsupported_media_type")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limits.body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            return await _read(request, limits, share)
    except TimeoutError as error:
        what = f"The body was not complete after {limits.body_timeout_s:g} s"
        raise ApiError(408, what, code="timeout") from error


async def _read(request: Request, limits: Limits, share: BodyShare) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limits.body_bytes:
            raise _too_large(limits)
        share.grow_to(len(body))
    return bytes(body)


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"The body is larger than {limits.body_bytes:,} bytes", code="body_too_large")


__all__ = [
    "BodyRoom", "ClientDisconnect", "ErrorReply", "JsonReply", "Reply", "read_body_of", "read_json_body", "start",
]  # fmt: skip
