"""The batch of `Client`: requests that were submitted together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Literal, Self, overload

from ...errors import EngineError, ExpertFlowError, RequestError, UsageError
from ..text.codec import TextCodec, TextStream
from ..text.output_text import OutputText
from .completions import Completion, Event, NotDoneInTime, read_routes
from .options import require_timeout
from .request import BatchUpdates, ClientRequest

DriveUntil = Callable[[Callable[[], bool], float | None], None]
Cancel = Callable[[list[ClientRequest]], None]


class BatchState:
    """Events and results that a batch has received so far. It waits for nothing."""

    def __init__(self, requests: list[ClientRequest], updates: BatchUpdates, codec: TextCodec, cancel: Cancel) -> None:
        """Wrap the requests, whose indices are their positions. `cancel` is called with requests to cancel."""
        self._requests, self._updates, self._codec, self._cancel = requests, updates, codec, cancel
        self._texts: dict[int, OutputText] = {}
        self._delivered: dict[int, int] = {}
        self._open = len(requests)
        self._completions: dict[int, Completion] = {}

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def done(self) -> bool:
        """Return whether every request has ended, as far as was received."""
        while self._open and self._requests[self._open - 1].ended:
            self._open -= 1
        return not self._open

    @property
    def started(self) -> bool:
        """Return whether a token of any request was received, or all have ended."""
        return self.done or any(request.tokens for request in self._requests)

    @property
    def under_way(self) -> int:
        """Return the number of requests that an engine has: they run, or wait for their turn there."""
        return sum(request.under_way for request in self._requests)

    def cancel(self, *indices: int) -> None:
        """End these requests, or all, between two steps: they finish as `cancelled` with the tokens they have.

        Raises RequestError for an index that the batch does not have. Requests that have ended stay as they are.
        """
        for index in indices:
            if not 0 <= index < len(self):
                what = f"{index} is no request of a batch of {len(self)}"
                raise RequestError(what, "cancel", "Give indices of prompts, from 0")
        self._cancel([self._requests[index] for index in indices] if indices else self._requests)

    def received(self) -> Iterator[Event]:
        """Yield what is new since the last call, at most one event a request."""
        for _ in range(len(self._updates)):
            if not self._updates:  # another iterator of the batch took it
                return
            yield self._event(self._requests[self._updates.take()])

    @property
    def has_updates(self) -> bool:
        """Return whether `received` would yield something."""
        return len(self._updates) > 0

    def _event(self, request: ClientRequest) -> Event:
        start = self._delivered.get(request.index, 0)
        self._delivered[request.index] = len(request.tokens)
        text = self._text(request).delta(request.tokens, request.ended)
        tokens, logprobs = request.tokens[start:], request.logprobs[start:]
        finish_reason, stop_reason = request.finish_reason, request.stop_reason
        return Event(request.index, tokens, text, finish_reason, request.error, logprobs, stop_reason)

    def _text(self, request: ClientRequest) -> OutputText:
        if request.index not in self._texts:
            self._texts[request.index] = request.text or OutputText(TextStream(self._codec))
        return self._texts[request.index]

    def _results(self, timeout_s: float | None, return_errors: bool) -> list[Completion | ExpertFlowError]:
        """Return completions and errors. Raises NotDoneInTime, or the first error unless `return_errors`."""
        if not self.done:
            self._raise_not_done(timeout_s)
        results = [request.error or self._completion(request) for request in self._requests]
        if not return_errors:
            for result in results:
                if isinstance(result, ExpertFlowError):
                    raise result
        return results

    def _completion(self, request: ClientRequest) -> Completion:
        if request.index not in self._completions:
            self._completions[request.index] = self._complete(request)
        return self._completions[request.index]

    def _complete(self, request: ClientRequest) -> Completion:
        if request.finish_reason is None or request.timings is None:
            raise EngineError("the request has not ended", "batch", "This is a bug")
        return Completion(
            token_ids=request.tokens,
            text=self._text(request).whole(request.tokens),
            finish_reason=request.finish_reason,
            stop_reason=request.stop_reason,
            timings=request.timings,
            request_id=request.submit.request_id,
            prompt_ids=request.submit.prompt_ids,
            logprobs=None if request.submit.details.logprobs is None else request.logprobs,
            prompt_logprobs=request.prompt_logprobs,
            routed_experts=read_routes(request.routed_experts, request.positions_to_stop),
            cached_tokens=request.cached_tokens,
        )

    def _raise_not_done(self, timeout_s: float | None) -> None:
        open_count = sum(not request.ended for request in self._requests)
        what = f"{open_count} of {len(self)} requests are not done after {timeout_s} s"
        raise NotDoneInTime(what, "results", "Wait again, or cancel the batch")


class Batch(BatchState):
    """Requests that were submitted together: wait for `results`, or iterate over events as they come.

    Both work while other batches are open. As a context manager the batch cancels its open requests at the end.
    """

    def __init__(
        self,
        requests: list[ClientRequest],
        updates: BatchUpdates,
        codec: TextCodec,
        cancel: Cancel,
        drive_until: DriveUntil,
    ) -> None:
        super().__init__(requests, updates, codec, cancel)
        self._drive_until = drive_until

    def __enter__(self) -> Self:
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.cancel()

    @overload
    def results(self, timeout_s: float | None = None) -> list[Completion]: ...
    @overload
    def results(self, timeout_s: float | None = None, *, return_errors: Literal[False]) -> list[Completion]: ...
    @overload
    def results(
        self, timeout_s: float | None = None, *, return_errors: Literal[True]
    ) -> list[Completion | ExpertFlowError]: ...

    def results(
        self, timeout_s: float | None = None, *, return_errors: bool = False
    ) -> list[Completion] | list[Completion | ExpertFlowError]:
        """Return completions in the order of the prompts.

        Raises the first error in that order, or puts errors in place of completions with `return_errors`. Raises
        NotDoneInTime after `timeout_s`; None waits as long as the engine lives.
        """
        require_timeout(timeout_s, "timeout_s")
        self._drive_until(lambda: self.done, timeout_s)
        return self._results(timeout_s, return_errors)

    def wait_until_started(self, timeout_s: float | None = None) -> bool:
        """Wait for the first token, the end of all requests, or `timeout_s`; return `started`.

        Until then the requests wait for their turn, or the engine computes the first token.
        """
        require_timeout(timeout_s, "timeout_s")
        self._drive_until(lambda: self.started, timeout_s)
        return self.started

    def wait_for_updates(self, timeout_s: float | None = None) -> bool:
        """Wait until `received` would yield something, all requests have ended, or for `timeout_s`.

        Returns whether there is something. For a loop that has other things to do besides.
        """
        require_timeout(timeout_s, "timeout_s")
        self._drive_until(lambda: self.has_updates or self.done, timeout_s)
        return self.has_updates

    def __iter__(self) -> Iterator[Event]:
        """Yield events of all requests as they come, until each has ended; an error is an event, not an exception."""
        return (event for _, event in stream_events([self], self._drive_until))


def stream_events(batches: list[Batch], drive_until: DriveUntil) -> Iterator[tuple[Batch, Event]]:
    """Yield events of several batches with their batch, until every request has ended.

    Raises UsageError unless all belong to the client that `drive_until` drives: for others nothing would arrive.
    """
    if not all(batch._drive_until == drive_until for batch in batches):
        raise UsageError("one batch belongs to another client", "events", "Iterate it by itself, or in its client")
    return _stream(batches, drive_until)


def _stream(batches: list[Batch], drive_until: DriveUntil) -> Iterator[tuple[Batch, Event]]:
    while True:
        for batch in batches:
            for event in batch.received():
                yield batch, event
        if any(batch.has_updates for batch in batches):
            continue
        if all(batch.done for batch in batches):
            return
        drive_until(lambda: any(batch.has_updates for batch in batches) or all(batch.done for batch in batches), None)
