"""A client of the HTTP server that does as little as it can, so that a benchmark measures the server.

It keeps what comes and reads it when the connection has ended: nothing is parsed while others wait.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, NamedTuple

DONE = b"[DONE]"
EVENT = b"data: "


class Stream(NamedTuple):
    """A stream that was read to its end."""

    events: list[bytes]
    """Data of all events but the last."""
    done: bool
    """Set if it ended with `[DONE]`."""
    error: str
    first_s: float
    """Seconds from the request to the first event; 0: there was none."""


async def post(port: int, path: str, body: dict[str, Any]) -> Any:
    """Return the answer to a body as JSON. Raises RuntimeError for another status than 200."""
    answer = await _send(port, path, body)
    head, _, content = bytes(answer.received).partition(b"\r\n\r\n")
    status = int(head.split(maxsplit=2)[1])
    if status != 200:
        raise RuntimeError(f"{status}: {content[:500]!r}")
    return json.loads(content)


async def read_stream(port: int, path: str, body: dict[str, Any]) -> Stream:
    """Return a stream of server-sent events, read to its end."""
    begun_s = time.perf_counter()
    answer = await _send(port, path, body | {"stream": True})
    lines = bytes(answer.received).split(b"\n")
    events = [line[len(EVENT) :].strip() for line in lines if line.startswith(EVENT)]
    errors = [event.decode() for event in events if b'"error"' in event[:10]]
    return Stream(
        events=[event for event in events if event != DONE],
        done=events[-1:] == [DONE],
        error=errors[0] if errors else "",
        first_s=answer.first_event_s - begun_s if answer.first_event_s else 0.0,
    )


class _Answer(asyncio.Protocol):
    """Everything that a connection brings. `ended` is set when it is closed."""

    def __init__(self, request: bytes) -> None:
        self.received = bytearray()
        self.first_event_s = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if isinstance(transport, asyncio.Transport):
            transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.first_event_s and EVENT in self.received:
            self.first_event_s = time.perf_counter()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def _send(port: int, path: str, body: dict[str, Any]) -> _Answer:
    """Send a body and return the answer, once the server has closed the connection; hang up when cancelled."""
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw
    _, answer = await asyncio.get_running_loop().create_connection(lambda: _Answer(request), "127.0.0.1", port)
    try:
        await answer.ended
    finally:
        answer.close()
    return answer
