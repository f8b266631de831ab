"""Which of several engines sees to which request. No socket, no clock.

An engine is handed about twice as many requests as it runs at the same time; the others wait here. So a fast engine
takes more of a batch than a slow one, and none is without work while another has some waiting. A single engine is
handed everything at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ...errors import ExpertFlowError
from .deadlines import Deadlines
from .request import ClientRequest
from .session import EngineSession


class RequestBalancer:
    """Requests of a client, and the exchanges with the engines that live."""

    def __init__(self) -> None:
        self._exchanges: list[EngineSession] = []
        self._waiting: deque[ClientRequest] = deque()
        self._deadlines = Deadlines()

    def add(self, exchange: EngineSession) -> None:
        """One more engine lives."""
        self._exchanges.append(exchange)
        self._recount()

    def hand_in(self, order: ClientRequest, now_ns: int) -> None:
        """Take a request."""
        self._waiting.append(order)
        self._deadlines.add(order, now_ns)
        self.spread(now_ns)

    def cancel(self, order: ClientRequest) -> None:
        """It ends by the word of the scheduler that has it, or at once."""
        for exchange in self._exchanges:
            if exchange.holds(order) or not order.under_way:
                exchange.cancel(order)

    def spread(self, now_ns: int) -> None:
        """Hand on what waits, first come first served, each to the engine that has the fewest."""
        self._deadlines.end_overdue(now_ns)
        for exchange in self._exchanges:
            self._put_back(exchange.returned)
            exchange.returned = []
        while self._waiting and (exchange := self._least_busy()):
            order = self._waiting.popleft()
            if not order.ended:
                exchange.hand_in(order, now_ns)

    def next_due_ns(self) -> int | None:
        """When something becomes due without news; None: not before there is news."""
        times = [exchange.next_due_ns() for exchange in self._exchanges]
        if self._waiting:
            times.append(self._deadlines.next_ns)
        return min((time for time in times if time is not None), default=None)

    def lose(self, exchange: EngineSession, error: ExpertFlowError) -> None:
        """This engine is gone. What it had open goes to another, with the tokens that were delivered, as to a new
        scheduler; without another, all ends with this error."""
        self._exchanges.remove(exchange)
        self._recount()
        if self._exchanges:
            self._put_back([*exchange.returned, *exchange.release()])
            return
        for order in [*exchange.returned, *self._waiting]:
            exchange.hand_in(order, 0)
        self._waiting.clear()
        exchange.fail_all(error)

    def _least_busy(self) -> EngineSession | None:
        """That still takes one."""
        if len(self._exchanges) == 1:
            return self._exchanges[0]
        hungry = [exchange for exchange in self._exchanges if exchange.open_count < exchange.max_outstanding]
        return min(hungry, key=lambda exchange: exchange.open_count, default=None)

    def _put_back(self, orders: Iterable[ClientRequest]) -> None:
        self._waiting.extendleft(reversed([*orders]))

    def _recount(self) -> None:
        for exchange in self._exchanges:
            exchange.one_of_several = len(self._exchanges) > 1
