"""A client of the HTTP server that does as little as it can, so that a benchmark measures the server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stream:
    """A stream that was read to its end."""

    chunks: int = 0
    done: bool = False
    """Set if it ended with `[DONE]`."""
    error: str = ""
    first_s: float = 0.0
    """Seconds from the request to the first chunk."""
    texts: list[str] = field(default_factory=list)


async def post(port: int, path: str, body: dict[str, Any]) -> Any:
    """Return the answer to a body as JSON. Raises RuntimeError for another status than 200."""
    reader, writer = await _send(port, path, body)
    try:
        status = int((await reader.readline()).split()[1])
        await reader.readuntil(b"\r\n\r\n")
        content = await reader.read()
    finally:
        writer.close()
    if status != 200:
        raise RuntimeError(f"{status}: {content[:500]!r}")
    return json.loads(content)


async def read_stream(port: int, path: str, body: dict[str, Any]) -> Stream:
    """Return a completion's stream, read to its end."""
    begun, stream = time.perf_counter(), Stream()
    reader, writer = await _send(port, path, body | {"stream": True})
    try:
        async for data in _events(reader):
            stream.first_s = stream.first_s or time.perf_counter() - begun
            if data == b"[DONE]":
                stream.done = True
            elif b'"error"' in data[:10]:
                stream.error = data.decode()
            else:
                stream.chunks += 1
                stream.texts.append(json.loads(data)["choices"][0]["text"])
    finally:
        writer.close()
    return stream


async def _send(port: int, path: str, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
    await writer.drain()
    return reader, writer


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    async for line in reader:
        if line.startswith(b"data: "):
            yield line[6:].strip()
