"""The client's core for one engine: which requests are under way, which wait their turn, what each has received. No
socket, no clock.

Many requests may be handed in; a window of them is under way at the scheduler. Each ends exactly once, whatever the
scheduler lives through: after a reconnect, what is under way is submitted again under its id.
"""

from __future__ import annotations

from collections import deque

from ...errors import EngineError, ExpertFlowError
from ...ipc.messages import Accepted, Cancel, Finished, FromClient, Refused, Submit, ToClient, Tokens
from .deadlines import Deadlines
from .prompts import typed_error
from .request import ClientRequest

WINDOW = 256
ASK_AGAIN_NS = 30_000_000_000
RETRY_NS = 50_000_000
MAX_RETRY_NS = 1_000_000_000


class EngineSession:
    """All requests of a client to one engine, in whatever batches."""

    def __init__(self, window: int = WINDOW) -> None:
        self.window = self.max_outstanding = window
        """`max_outstanding`: how many requests it is handed at once while there are other engines."""
        self.one_of_several = False
        self.returned: list[ClientRequest] = []
        """Requests that an engine about to stop has refused, for the others."""
        self._unsent: deque[ClientRequest] = deque()
        self._under_way: dict[str, ClientRequest] = {}
        self._busy: list[ClientRequest] = []
        self._cancels: list[Cancel] = []
        self._deadlines = Deadlines()
        self._quiet_since_ns = 0
        self._retry_at_ns = 0
        self._retry_ns = RETRY_NS
        self.strays = 0
        """Answers to nothing that is under way."""

    @property
    def open_count(self) -> int:
        """Requests it is to see to, sent or not."""
        return len(self._under_way) + len(self._busy) + len(self._unsent)

    def holds(self, order: ClientRequest) -> bool:
        """Whether the scheduler was sent it."""
        return order.submit.request_id in self._under_way

    def abandon(self) -> list[FromClient]:
        """The client leaves: what to tell the scheduler so that it stops working for it."""
        return [Cancel(request_id) for request_id in self._under_way]

    def hand_in(self, order: ClientRequest, now_ns: int) -> None:
        """Take a request; it is sent when its turn comes."""
        self._unsent.append(order)
        self._deadlines.add(order, now_ns)

    def cancel(self, order: ClientRequest) -> None:
        """It ends by the scheduler's word, or at once if the scheduler has never heard of it."""
        if order.ended or order.cancelled:
            return
        order.cancelled = True
        if order.under_way:
            self._cancels.append(Cancel(order.submit.request_id))
        else:
            order.end_here("cancelled")

    def due(self, now_ns: int) -> list[FromClient]:
        """What is to be sent now."""
        self._deadlines.end_overdue(now_ns)
        self._ask_again(now_ns)
        cancels, self._cancels = self._cancels, []
        messages: list[FromClient] = list(cancels)
        if now_ns < self._retry_at_ns:
            return messages
        self._unsent.extendleft(reversed(self._busy))
        self._busy.clear()
        if not self._under_way:
            self._quiet_since_ns = now_ns
        while self._unsent and len(self._under_way) < self.window:
            order = self._unsent.popleft()
            if not order.ended:
                messages.append(self._send(order, now_ns))
        return messages

    def next_due_ns(self) -> int | None:
        """When something becomes due without news; None: not before there is news."""
        may_send = self._busy or (self._unsent and len(self._under_way) < self.window)
        times = [self._retry_at_ns] if may_send else []
        if (self._unsent or self._busy) and (deadline_ns := self._deadlines.next_ns) is not None:
            times.append(deadline_ns)
        return min(times, default=None)

    def receive(self, message: ToClient, now_ns: int) -> None:
        """Take in an answer; `Welcome` says nothing about requests."""
        self._quiet_since_ns = now_ns
        match message:
            case Accepted(request_id):
                self._accepted(request_id)
            case Tokens(request_id, offset, token_ids):
                self._tokens(request_id, offset, token_ids)
            case Finished():
                self._finished(message)
            case Refused():
                self._refused(message, now_ns)
            case _:
                pass

    def reconnected(self) -> None:
        """There may be a new scheduler, which knows nothing: what is under way goes first in line once more."""
        for order in reversed(self._under_way.values()):
            order.under_way = False
            if order.cancelled:
                order.end_here("cancelled")
            else:
                self._unsent.appendleft(order)
        self._under_way.clear()
        self._cancels.clear()
        self._retry_at_ns = 0

    def release(self) -> list[ClientRequest]:
        """Another engine shall see to what is open: it goes there as to a new scheduler."""
        self._unsent.extendleft(reversed(self._busy))
        self._busy.clear()
        self.reconnected()
        orders = [order for order in self._unsent if not order.ended]
        self._unsent.clear()
        return orders

    def fail_all(self, error: ExpertFlowError) -> None:
        """The engine is gone: whatever is open ends with this error."""
        for order in [*self._under_way.values(), *self._busy, *self._unsent]:
            if not order.ended:
                order.error = error
                order.tell()
        self._under_way.clear()
        self._busy.clear()
        self._unsent.clear()

    def _ask_again(self, now_ns: int) -> None:
        """After long silence about requests: answers are lost when a stopped client did not take them."""
        if self._under_way and now_ns - self._quiet_since_ns > ASK_AGAIN_NS:
            self.reconnected()

    def _send(self, order: ClientRequest, now_ns: int) -> Submit:
        self._under_way[order.submit.request_id] = order
        order.under_way = True
        return order.to_send(now_ns)

    def _accepted(self, request_id: str) -> None:
        """From now on it is not given up as busy: only a scheduler that has forgotten it would say so."""
        self._retry_ns = RETRY_NS
        if request_id in self._under_way:
            self._under_way[request_id].wait_when_busy = True

    def _tokens(self, request_id: str, offset: int, token_ids: list[int]) -> None:
        """Known tokens may come again, with new ones behind them."""
        order = self._under_way.get(request_id)
        if order is None or offset > len(order.tokens):
            self.strays += 1
            return
        fresh = token_ids[len(order.tokens) - offset :]
        if fresh:
            order.tokens += fresh
            order.tell()

    def _finished(self, message: Finished) -> None:
        order = self._take(message.request_id)
        if order is not None:
            order.tokens += message.token_ids[len(order.tokens) :]
            order.timings, order.finish_reason = message.timings, message.finish_reason
            order.tell()

    def _refused(self, message: Refused, now_ns: int) -> None:
        order = self._take(message.request_id)
        if order is None:
            return
        if order.cancelled:
            order.end_here("cancelled")
        elif message.error.code == "busy" and order.wait_when_busy:
            self._try_later(order, now_ns)
        elif message.error.code == EngineError.code and self.one_of_several:
            self.max_outstanding = 0
            self.returned.append(order)
        else:
            order.error = typed_error(message.error)
            order.tell()

    def _take(self, request_id: str) -> ClientRequest | None:
        order = self._under_way.pop(request_id, None)
        if order is None:
            self.strays += 1
        else:
            order.under_way = False
        return order

    def _try_later(self, order: ClientRequest, now_ns: int) -> None:
        """Several refusals of one burst count once; each further burst that is refused waits longer."""
        self._busy.append(order)
        if now_ns >= self._retry_at_ns:
            self._retry_at_ns = now_ns + self._retry_ns
            self._retry_ns = min(2 * self._retry_ns, MAX_RETRY_NS)
