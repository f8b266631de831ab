"""Live figures for all pages that are open: one poll of the engine a second, none while no page is open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec

from ...errors import EngineError, ExpertFlowError
from ..client.watching import Watcher
from ..monitor.engine_views import EngineView, EngineViews
from .page_json import history_json, now_json

EVERY_S = 1.0
SHORTEST_PAUSE_S = 0.2
MAX_PAGES = 32


class Served(Protocol):
    """The engine as the server has it."""

    @property
    def address(self) -> str:
        """Return the engine's address; empty before it is ready."""
        ...

    @property
    def error(self) -> ExpertFlowError | None:
        """Return the error that ended the engine."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what the page says of the server: the model, and how far a start is."""
        ...


class LiveFeed:
    """Frames of server-sent events. A page that reads slowly misses frames; it never makes them wait."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._pages = self._number = 0
        self._frame = b""
        self._views: list[EngineView] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def is_full(self) -> bool:
        """Return whether no further page may be shown."""
        return self._pages >= MAX_PAGES

    @property
    def is_polling(self) -> bool:
        """Return whether the engine is asked."""
        return self._task is not None

    async def frames(self) -> AsyncIterator[bytes]:
        """Yield events for one page: the history once, then what is new every second, until `stop`."""
        self._pages += 1
        if self._task is None:
            self._task = asyncio.create_task(self._poll())
        try:
            seen, told = 0, False
            while not self._stopped:
                if seen == self._number:
                    await self._changed.wait()
                    continue
                seen = self._number
                if self._views and not told:
                    told = True
                    yield event("history", {view.engine: history_json(view.points) for view in self._views})
                yield self._frame
        finally:
            self._pages -= 1

    def stop(self) -> None:
        """End the events of every page: the server is stopped."""
        self._stopped = True
        self._changed.set()

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "expertflow-watch") as thread:
            poll = _Poll()
            try:
                while self._pages:
                    due_s = loop.time() + EVERY_S
                    await self._look(poll, thread)
                    await asyncio.sleep(max(SHORTEST_PAUSE_S, due_s - loop.time()))
            finally:
                self._task, self._views, self._number = None, [], self._number + 1
                await loop.run_in_executor(thread, poll.close)

    async def _look(self, poll: _Poll, thread: ThreadPoolExecutor) -> None:
        described = self._served.describe()
        if self._served.address and self._served.error is None:
            try:
                loop = asyncio.get_running_loop()
                address = self._served.address
                self._views = await loop.run_in_executor(thread, lambda: poll.look(address))
                described["engines"] = [now_json(view) for view in self._views]
            except EngineError as error:
                described |= {"state": "silent", "error": str(error)}
        self._frame, self._number = event("now", described), self._number + 1
        self._changed.set()
        self._changed = asyncio.Event()


class _Poll:
    """The watcher of the engine; belongs to one thread."""

    def __init__(self) -> None:
        self._watcher: Watcher | None = None
        self._views = EngineViews()

    def look(self, address: str) -> list[EngineView]:
        """Return the views of the engines now. Raises EngineError."""
        if self._watcher is None:
            self._watcher = Watcher(address)
        watcher = self._watcher
        return self._views.update(watcher.snapshot(), watcher.history(self._views.since_ns), watcher.activity())

    def close(self) -> None:
        """Disconnect."""
        if self._watcher is not None:
            self._watcher.close()


def event(name: str, content: dict[str, Any]) -> bytes:
    """Return a server-sent event with JSON, which has no line ends."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(content))
