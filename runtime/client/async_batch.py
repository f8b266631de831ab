"""The batch of `AsyncClient`: requests that were submitted together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Literal, Self, overload

from ...errors import EngineError, ExpertFlowError
from ..text.codec import TextCodec
from .batch import BatchState, Cancel
from .completions import Completion, Event
from .options import require_timeout
from .request import BatchUpdates, ClientRequest


class AsyncBatch(BatchState):
    """Requests that were submitted together by `AsyncClient.submit`: await `results`, or iterate over events.

    A task that is cancelled while it awaits `results` or an event cancels the batch's requests in the engine. As a
    context manager (`async with`) the batch cancels its open requests at the end.
    """

    def __init__(
        self,
        requests: list[ClientRequest],
        updates: BatchUpdates,
        codec: TextCodec,
        cancel: Cancel,
        closed: Callable[[], bool],
    ) -> None:
        super().__init__(requests, updates, codec, cancel)
        self._closed = closed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.cancel()

    @overload
    async def results(self, timeout_s: float | None = None) -> list[Completion]: ...
    @overload
    async def results(self, timeout_s: float | None = None, *, return_errors: Literal[False]) -> list[Completion]: ...
    @overload
    async def results(
        self, timeout_s: float | None = None, *, return_errors: Literal[True]
    ) -> list[Completion | ExpertFlowError]: ...

    async def results(
        self, timeout_s: float | None = None, *, return_errors: bool = False
    ) -> list[Completion] | list[Completion | ExpertFlowError]:
        """Return completions in the order of the prompts.

        Raises the first error in that order, or puts errors in place of completions with `return_errors`. Raises
        NotDoneInTime after `timeout_s`, which leaves the batch running; a cancelled task cancels it.
        """
        require_timeout(timeout_s, "timeout_s")
        await wait_for_any([self], lambda: self.done, timeout_s)
        return self._results(timeout_s, return_errors)

    async def wait_until_started(self, timeout_s: float | None = None) -> bool:
        """Wait for the first token, the end of all requests, or `timeout_s`; return `started`.

        A cancelled task cancels the batch.
        """
        require_timeout(timeout_s, "timeout_s")
        await wait_for_any([self], lambda: self.started, timeout_s)
        return self.started

    async def wait_for_updates(self, timeout_s: float | None = None) -> bool:
        """Wait until `received` would yield something, all requests have ended, or for `timeout_s`.

        Returns whether there is something. A cancelled task cancels the batch.
        """
        require_timeout(timeout_s, "timeout_s")
        await wait_for_any([self], lambda: self.has_updates or self.done, timeout_s)
        return self.has_updates

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events of all requests as they come, until each has ended; an error is an event, not an exception."""
        async for _, event in stream_events([self]):
            yield event

    @property
    def is_closed(self) -> bool:
        """Return whether the client was closed before the requests were done."""
        return self._closed() and not self.done

    def require_open(self) -> None:
        """Raise EngineError if the client was closed before the requests were done."""
        if self.is_closed:
            raise EngineError("the client was closed before its requests were done", "client", "Close it later")

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` at every update from now on."""
        self._updates.listeners.append(listener)

    def ignore(self, listener: Callable[[], None]) -> None:
        """Stop calling `listener`."""
        self._updates.listeners.remove(listener)

    def wake(self) -> None:
        """Call all listeners, so that waiting tasks check again."""
        self._updates.wake()


async def stream_events(batches: Sequence[AsyncBatch]) -> AsyncIterator[tuple[AsyncBatch, Event]]:
    """Yield events of several batches of one client with their batch, until every request has ended."""
    while True:
        for batch in batches:
            for event in batch.received():
                yield batch, event
        if any(batch.has_updates for batch in batches):
            continue
        if all(batch.done for batch in batches):
            return
        await wait_for_any(
            batches, lambda: any(batch.has_updates for batch in batches) or all(batch.done for batch in batches)
        )


async def wait_for_any(
    batches: Sequence[AsyncBatch], reached: Callable[[], bool], timeout_s: float | None = None
) -> None:
    """Wait until updates of these batches have made `reached` true, or for `timeout_s`.

    A cancelled wait cancels the requests of all the batches. Raises EngineError if the client is closed meanwhile.
    """
    wait = _Wait(batches, reached)
    try:
        await wait.run(timeout_s)
    except asyncio.CancelledError:
        for batch in batches:
            batch.cancel()
        raise
    finally:
        wait.end()


class _Wait:
    """One wait for updates. The listener checks whether there is something to do: only then is the task resumed."""

    def __init__(self, batches: Sequence[AsyncBatch], reached: Callable[[], bool]) -> None:
        self._batches, self._reached = batches, reached
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] = self._loop.create_future()
        self._expired = False
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, timeout_s: float | None) -> None:
        """Wait. Raises EngineError if the client is closed meanwhile."""
        if timeout_s is not None:
            self._timer = self._loop.call_later(timeout_s, self._on_timer)
        for batch in self._batches:
            batch.listen(self._on_update)
        while not (self._reached() or self._expired):
            for batch in self._batches:
                batch.require_open()
            self._waiter = self._loop.create_future()
            await self._waiter

    def end(self) -> None:
        """Stop listening."""
        if self._timer is not None:
            self._timer.cancel()
        for batch in self._batches:
            batch.ignore(self._on_update)

    def _on_update(self) -> None:
        if not self._waiter.done() and (self._reached() or any(batch.is_closed for batch in self._batches)):
            self._waiter.set_result(None)

    def _on_timer(self) -> None:
        self._expired = True
        if not self._waiter.done():
            self._waiter.set_result(None)
