"""Waits for updates of a batch, for the client's hang-up, and for the end of the server.

A stream waits once a token, so a wait is one future: the listener itself checks whether there is something to do, and
a task is resumed only then. The timer of a wait is left running from one wait to the next.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from ..client.async_batch import AsyncBatch
from .stop_signal import StopSignal, stopped


class Watch:
    """Wakes for updates of a batch, for the client's hang-up, and for the end of the server."""

    def __init__(self, batch: AsyncBatch, receive: Receive, stopping: StopSignal) -> None:
        self._batch, self._stopping = batch, stopping
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._reached: Callable[[], bool] = lambda: True
        self._gone = False
        self._deadline_s = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._client: asyncio.Task[None] | None = asyncio.create_task(self._watch_client(receive))

    async def wait(self, reached: Callable[[], bool], timeout_s: float = math.inf) -> bool:
        """Wait until `reached`, which updates of the batch bring about; return False after `timeout_s`.

        Raises ClientDisconnect for a client that has hung up, EngineError at the end of the server.
        """
        if reached():
            return True
        self._reached = reached
        self._deadline_s = deadline_s = self._loop.time() + timeout_s
        self._set_timer()
        while not reached():
            self._raise_if_over()
            if self._loop.time() >= deadline_s:
                return False
            self._waiter = self._loop.create_future()
            await self._waiter
        return True

    def open(self) -> None:
        """Begin to listen."""
        self._batch.listen(self._on_update)
        self._stopping.listeners.add(self._wake)

    def close(self) -> None:
        """Stop listening, and cancel what still runs.

        A cancelled task keeps the frame in which it was: without this reference to it, that is no circle, which would
        keep the batch until garbage is collected.
        """
        self._batch.ignore(self._on_update)
        self._stopping.listeners.discard(self._wake)
        if not self._batch.done:
            self._batch.cancel()
        client, self._client = self._client, None
        if client is not None:
            client.cancel()
        if self._timer is not None:
            self._timer.cancel()

    def _on_update(self) -> None:
        if self._waiter is not None and (self._reached() or self._batch.is_closed):
            self._wake()

    def _wake(self) -> None:
        """Resume the task that waits, if one does."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _set_timer(self) -> None:
        """Let a timer run until the deadline at most. One that fires earlier is set again then."""
        if self._timer is not None and self._timer.when() > self._deadline_s:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and self._deadline_s < math.inf:
            self._timer = self._loop.call_at(self._deadline_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._loop.time() >= self._deadline_s:
            self._wake()
        else:
            self._set_timer()

    def _raise_if_over(self) -> None:
        if self._gone:
            raise ClientDisconnect
        if self._stopping.is_set():
            raise stopped()
        self._batch.require_open()

    async def _watch_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self._gone = True
        self._wake()


@asynccontextmanager
async def watching(batch: AsyncBatch, receive: Receive, stopping: StopSignal) -> AsyncIterator[Watch]:
    """Yield a watch over a batch; at the end the batch is cancelled if it still runs."""
    watch = Watch(batch, receive, stopping)
    watch.open()
    try:
        yield watch
    finally:
        watch.close()
