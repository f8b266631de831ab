"""The HTTP server in a thread of the test, in front of an engine, and a plain client that says what it likes."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NamedTuple

from expertflow.runtime.http.__main__ import configure
from expertflow.runtime.http.app import Application
from expertflow.runtime.http.counters import Counters
from expertflow.runtime.http.engine_link import EngineLink
from expertflow.runtime.http.spec import FrontSpec, Limits, Serving, Update
from expertflow.runtime.service.listening import bind
from uvicorn import Server

PATIENCE_S = 20.0
QUICK = Limits(grace_s=0.0)


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


class LocalServer:
    """A context manager. Without an address, the engine loads for ever."""

    def __init__(
        self, address: str | None, *, keys: list[str] | None = None, limits: Limits = QUICK, name: str = "tiny"
    ) -> None:
        self.socket = bind("127.0.0.1", 0)
        self.port: int = self.socket.getsockname()[1]
        self.spec = FrontSpec(fd=-1, names=[name, "alias"], keys=keys or [], default_max_tokens=20, limits=limits)
        self._address = address
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._guard, name="http")
        self.link: EngineLink
        self._server: Server
        self._loop: asyncio.AbstractEventLoop

    def __enter__(self) -> LocalServer:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        assert self._thread.is_alive(), "the server did not start"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def tell(self, update: Update) -> None:
        asyncio.run_coroutine_threadsafe(self.link.update(update), self._loop).result(PATIENCE_S)

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, None, headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, raw, {"content-type": "application/json"} | headers)

    def request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # refused before the whole body was sent
                connection.request(method, path, body, named)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def completion(self, **body: Any) -> Answer:
        return self.post("/v1/completions", {"prompt": [5, 6], "max_tokens": 4, **body})

    @contextmanager
    def stream(self, path: str = "/v1/completions", **body: Any) -> Iterator[http.client.HTTPResponse]:
        """A stream that is read line by line; leaving hangs up."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        raw = json.dumps({"prompt": [5, 6], "max_tokens": 4, "stream": True, **body})
        connection.request("POST", path, raw, {"content-type": "application/json"})
        try:
            yield connection.getresponse()
        finally:
            connection.close()

    @contextmanager
    def watch(self) -> Iterator[http.client.HTTPResponse]:
        """The events of an open page; leaving closes it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.request("GET", "/watch/events")
        try:
            yield connection.getresponse()
        finally:
            connection.close()

    def raw(self, data: bytes, *, timeout_s: float = PATIENCE_S) -> tuple[int, bytes]:
        """Send bytes, read to the end of the connection; return the status (0: none) and everything."""
        with socket.create_connection(("127.0.0.1", self.port), timeout_s) as opened:
            with suppress(BrokenPipeError, ConnectionResetError):
                opened.sendall(data)
            answer = b""
            with suppress(ConnectionResetError):
                while piece := opened.recv(65536):
                    answer += piece
        return (int(answer.split(b" ", 2)[1]) if answer else 0), answer

    def _end(self) -> None:
        self._server.should_exit = True
        self.link.feed.stop()
        self._loop.call_later(self.spec.limits.grace_s, self.link.stopping.set)

    def _guard(self) -> None:
        try:
            asyncio.run(self._run())
        finally:
            self.socket.close()
            self._ready.set()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.link = EngineLink(self.spec, Counters())
        self._server = Server(configure(self.spec, Application(self.link)))
        if self._address is not None:
            await self.link.update(Serving(self._address))
        self._loop.call_soon(self._ready.set)
        await self._server.serve(sockets=[self.socket])
        await self.link.close()


def events(response: http.client.HTTPResponse) -> Iterator[Any]:
    """The data of a stream as it comes; `[DONE]` as a text, comments as bytes."""
    for line in response:
        if line.startswith(b"data: "):
            text = line.removeprefix(b"data: ").strip().decode()
            yield text if text == "[DONE]" else json.loads(text)
        elif line.startswith(b":"):
            yield line
