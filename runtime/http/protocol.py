"""uvicorn's HTTP protocol with the limits it lacks: of headers, of connections, and of clients that do not read."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..openai.errors import SERVER, ApiError
from .replies import ErrorReply
from .spec import Limits

_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large",
            503: b"Service Unavailable"}  # fmt: skip

MAX_FRAME_SHARE = 16
"""Bytes around each byte of a body, in chunks of a byte with lengths as long as clients write them."""


def limited_protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """Return the protocol with these limits; uvicorn makes an instance for each connection."""
    return type("LimitedProtocol", (_LimitedProtocol,), {"limits": limits})


class _LimitedProtocol(HttpToolsProtocol):
    """A connection. One timer runs while headers are awaited, another while the client does not read what is written.

    So slow and silent clients do not keep connections, nor the answers that wait for them.
    """

    limits = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._aborting: asyncio.TimerHandle | None = None
        self._in_headers = True
        self._header_bytes = 0
        self._messages = self._body_bytes = self._frame_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            error = ApiError(503, "Too many connections", kind=SERVER, code="too_many_connections")
            self._refuse(error, b"retry-after: 1\r\n")
        else:
            self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_aborting()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_aborting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_later()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        before, begun, body = self._header_bytes, self._messages, self._body_bytes
        super().data_received(data)
        if not self._in_headers and begun == self._messages:
            self._count_frame(len(data) - (self._body_bytes - body))
        if self._in_headers and self.parser is not None:
            self._header_bytes = max(self._header_bytes, before + len(data))
            if self._header_bytes > self.limits.header_bytes and not self.transport.is_closing():
                self._refuse(self._too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers, self._header_bytes = True, 0
        self._messages, self._body_bytes, self._frame_bytes = self._messages + 1, 0, 0
        if self._timer is None:
            self._set_timer()

    def on_url(self, url: bytes) -> None:
        self._header_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._in_headers:  # what follows a body (trailers) is not kept
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._in_headers = False
        if self._header_bytes > self.limits.header_bytes:
            self.app = ErrorReply(self._too_large(), {"connection": "close"})
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the shape of all other errors."""
        self._refuse(ApiError(400, msg))

    def _count_frame(self, count: int) -> None:
        """Cut a connection off that sends far more than its body: trailers without an end, or lengths of chunks."""
        self._frame_bytes += count
        if self._frame_bytes > self.limits.header_bytes + MAX_FRAME_SHARE * self._body_bytes:
            self.transport.abort()

    def _too_large(self) -> ApiError:
        what = f"The headers are larger than {self.limits.header_bytes:,} bytes"
        return ApiError(431, what, code="headers_too_large")

    def _on_time_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            what = f"The headers were not complete after {self.limits.header_timeout_s:g} s"
            self._refuse(ApiError(408, what, code="timeout"))

    def _refuse(self, error: ApiError, more: bytes = b"") -> None:
        """Write an answer outside of a request, and close."""
        body = msgspec.json.encode(error.answer)
        head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%sconnection: close\r\n\r\n"
        self.transport.write(head % (error.status, _REASONS[error.status], len(body), more) + body)
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        """End the connection unless the client reads what is written; closing alone waits for ever."""
        if self._aborting is None:
            self._aborting = self.loop.call_later(self.limits.write_timeout_s, self.transport.abort)

    def _stop_aborting(self) -> None:
        if self._aborting is not None:
            self._aborting.cancel()
            self._aborting = None

    def _set_timer(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_timeout_s, self._on_time_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
