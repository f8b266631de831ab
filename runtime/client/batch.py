"""Requests that were handed in together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, overload

from ...errors import EngineError, ExpertFlowError
from .completions import Completion, Event, NotDoneInTime
from .request import ClientRequest
from .text import TextCodec, TextStream

PumpUntil = Callable[[Callable[[], bool], float | None], None]


class Batch:
    """Wait for it with `results`, or iterate it for tokens as they come; both work while other batches are open."""

    def __init__(
        self,
        orders: list[ClientRequest],
        news: dict[int, None],
        codec: TextCodec,
        pump_until: PumpUntil,
        cancel: Callable[[list[ClientRequest]], None],
    ) -> None:
        self._orders, self._news, self._codec = orders, news, codec
        self._pump_until, self._cancel = pump_until, cancel
        self._streams: dict[int, TextStream] = {}
        self._told: dict[int, int] = {}
        self._open = len(orders)
        self._completions: dict[int, Completion] = {}

    def __len__(self) -> int:
        return len(self._orders)

    @property
    def done(self) -> bool:
        """Whether every request has ended, as far as was received."""
        while self._open and self._orders[self._open - 1].ended:
            self._open -= 1
        return not self._open

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
        """Completions in the order of the prompts.

        Raises the first error in that order, or puts errors in place of completions with `return_errors`. Raises
        NotDoneInTime after `timeout_s`; without it, it waits as long as the engine lives.
        """
        self._pump_until(lambda: self.done, timeout_s)
        if not self.done:
            self._raise_not_done(timeout_s)
        results = [order.error or self._completion(order) for order in self._orders]
        if not return_errors:
            for result in results:
                if isinstance(result, ExpertFlowError):
                    raise result
        return results

    def cancel(self) -> None:
        """End all its requests between two steps: they finish with reason `cancelled` and the tokens they have."""
        self._cancel(self._orders)

    def __iter__(self) -> Iterator[Event]:
        """Events of all requests as they come, until each has ended; an error is an event, not an exception."""
        while True:
            while self._news:
                index = next(iter(self._news))
                del self._news[index]
                yield self._event(self._orders[index])
            if self.done:
                return
            self._pump_until(lambda: bool(self._news) or self.done, None)

    def _event(self, order: ClientRequest) -> Event:
        start = self._told.get(order.index, 0)
        self._told[order.index] = len(order.tokens)
        stream = self._streams.setdefault(order.index, TextStream(self._codec))
        text = stream.delta(order.tokens, order.ended)
        return Event(order.index, order.tokens[start:], text, order.finish_reason, order.error)

    def _completion(self, order: ClientRequest) -> Completion:
        if order.index not in self._completions:
            self._completions[order.index] = self._complete(order)
        return self._completions[order.index]

    def _complete(self, order: ClientRequest) -> Completion:
        if order.finish_reason is None or order.timings is None:
            raise EngineError("the request has not ended", "batch", "This is a bug")
        return Completion(
            token_ids=order.tokens,
            text=self._codec.decode(order.tokens),
            finish_reason=order.finish_reason,
            timings=order.timings,
            request_id=order.submit.request_id,
            prompt_ids=order.submit.prompt_ids,
        )

    def _raise_not_done(self, timeout_s: float | None) -> None:
        open_count = sum(not order.ended for order in self._orders)
        what = f"{open_count} of {len(self)} requests are not done after {timeout_s} s"
        raise NotDoneInTime(what, "results", "Wait again, or cancel the batch")
