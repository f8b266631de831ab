"""The client's state machine for one engine: requests that wait, requests under way, and what each has received.

Pure: answers and times go in, messages to send come out. No socket, no clock. Of many requests a window is under way at
the scheduler. Each ends exactly once, whatever happens to the scheduler: after a reconnect, requests under way are
submitted again under their ids. Of the requests that wait, those of a lower `priority` are sent first.
"""

from __future__ import annotations

from ...errors import EngineError, ExpertFlowError
from ...ipc.messages import Accepted, Cancel, Finished, FromClient, Refused, Submit, ToClient, Tokens
from .request import ClientRequest, Deadlines, UnsentRequests

WINDOW = 256
ASK_AGAIN_NS = 30_000_000_000
RETRY_NS = 50_000_000
MAX_RETRY_NS = 1_000_000_000


class EngineSession:
    """All requests of a client to one engine, of all batches."""

    def __init__(self, window: int = WINDOW, origin: str = "") -> None:
        """`origin`: a name that no other session has."""
        self.window = self.max_outstanding = window
        """`max_outstanding`: number of requests that it gets at once while there are other engines."""
        self.one_of_several = False
        self._origin, self._attempt = origin, 0
        self.returned: list[ClientRequest] = []
        """Requests that a stopping engine has refused; the other engines get them."""
        self._unsent = UnsentRequests()
        self._under_way: dict[str, ClientRequest] = {}
        self._busy: list[ClientRequest] = []
        self._cancels: list[Cancel] = []
        self._deadlines = Deadlines()
        self._quiet_since_ns = 0
        self._retry_at_ns = 0
        self._retry_ns = RETRY_NS
        self.strays = 0
        """Number of answers to requests that are not under way."""

    @property
    def open_count(self) -> int:
        """Return the number of open requests, sent or not."""
        return len(self._under_way) + len(self._busy) + len(self._unsent)

    def holds(self, request: ClientRequest) -> bool:
        """Return whether the request was sent to the scheduler."""
        return request.submit.request_id in self._under_way

    def cancellations(self) -> list[FromClient]:
        """Return a `Cancel` for each request under way, for a client that disconnects."""
        return [Cancel(request_id) for request_id in self._under_way]

    def submit(self, request: ClientRequest, now_ns: int) -> None:
        """Queue a request; it is sent when the window has room."""
        self._unsent.append(request)
        self._deadlines.add(request, now_ns)

    def cancel(self, request: ClientRequest) -> None:
        """Cancel a request: the scheduler ends it, or it ends at once if no scheduler was sent it."""
        if request.ended or request.cancelled:
            return
        request.cancelled = True
        if request.under_way:
            self._cancels.append(Cancel(request.submit.request_id))
        else:
            request.end_here("cancelled")

    def due(self, now_ns: int) -> list[FromClient]:
        """Return the messages to send now."""
        self._deadlines.end_overdue(now_ns)
        self._ask_again(now_ns)
        cancels, self._cancels = self._cancels, []
        messages: list[FromClient] = list(cancels)
        if now_ns < self._retry_at_ns:
            return messages
        self._unsent.put_back(self._busy)
        self._busy.clear()
        if not self._under_way:
            self._quiet_since_ns = now_ns
        while self._unsent and len(self._under_way) < self.window:
            request = self._unsent.pop()
            if not request.ended:
                messages.append(self._send(request, now_ns))
        return messages

    def next_due_ns(self) -> int | None:
        """Return when something is due without an answer (monotonic ns); None: not before an answer."""
        may_send = self._busy or (self._unsent and len(self._under_way) < self.window)
        times = [self._retry_at_ns] if may_send else []
        if (self._unsent or self._busy) and (deadline_ns := self._deadlines.next_ns) is not None:
            times.append(deadline_ns)
        return min(times, default=None)

    def receive(self, message: ToClient, now_ns: int) -> None:
        """Apply an answer to its request; `Welcome` is about none."""
        self._quiet_since_ns = now_ns
        match message:
            case Accepted(request_id):
                self._on_accepted(request_id)
            case Tokens():
                self._on_tokens(message)
            case Finished():
                self._on_finished(message)
            case Refused():
                self._on_refused(message, now_ns)
            case _:
                pass

    def on_reconnect(self) -> None:
        """Queue requests under way first in line again: a new scheduler does not know them."""
        self._attempt += 1
        requests = list(self._under_way.values())
        self._under_way.clear()
        for request in requests:
            request.under_way = False
            if request.cancelled:
                request.end_here("cancelled")
        self._unsent.put_back(request for request in requests if not request.cancelled)
        self._cancels.clear()
        self._retry_at_ns = 0

    def release(self) -> list[ClientRequest]:
        """Remove and return all open requests, for another engine."""
        self._unsent.put_back(self._busy)
        self._busy.clear()
        self.on_reconnect()
        requests = [request for request in self._unsent if not request.ended]
        self._unsent.clear()
        return requests

    def fail_all(self, error: ExpertFlowError) -> None:
        """End all open requests with this error: the engine has ended."""
        for request in [*self._under_way.values(), *self._busy, *self._unsent]:
            if not request.ended:
                request.fail(error)
        self._under_way.clear()
        self._busy.clear()
        self._unsent.clear()

    def _ask_again(self, now_ns: int) -> None:
        """Submit again after a long silence about requests: a suspended client loses answers that it does not read."""
        if self._under_way and now_ns - self._quiet_since_ns > ASK_AGAIN_NS:
            self.on_reconnect()

    def _send(self, request: ClientRequest, now_ns: int) -> Submit:
        self._under_way[request.submit.request_id] = request
        request.under_way = True
        return request.to_send(now_ns, self._origin, self._attempt)

    def _on_accepted(self, request_id: str) -> None:
        """Note that the request was accepted. A later "busy" comes from a new scheduler, so the request waits then."""
        self._retry_ns = RETRY_NS
        if request_id in self._under_way:
            self._under_way[request_id].wait_when_busy = True

    def _on_tokens(self, message: Tokens) -> None:
        """Append new tokens; tokens that were delivered before may precede them."""
        request = self._under_way.get(message.request_id)
        if request is not None and request.meets_stop:
            return  # they were computed before the cancellation
        if request is None or message.offset > len(request.tokens):
            self.strays += 1
        elif request.add_output(message.token_ids, message.offset, message.logprobs):
            request.notify()
            if request.meets_stop:
                self.cancel(request)

    def _on_finished(self, message: Finished) -> None:
        request = self._remove(message.request_id)
        if request is not None:
            request.finish(message)

    def _on_refused(self, message: Refused, now_ns: int) -> None:
        request = self._remove(message.request_id)
        if request is None:
            return
        if request.cancelled:
            request.end_here("cancelled")
        elif message.error.code == "busy" and request.wait_when_busy:
            self._try_later(request, now_ns)
        elif message.error.code == EngineError.code and self.one_of_several:
            self.max_outstanding = 0
            self.returned.append(request)
        else:
            request.fail(message.error.to_error())

    def _remove(self, request_id: str) -> ClientRequest | None:
        request = self._under_way.pop(request_id, None)
        if request is None:
            self.strays += 1
        else:
            request.under_way = False
        return request

    def _try_later(self, request: ClientRequest, now_ns: int) -> None:
        """Queue a refused request again. Refusals of one burst count once; each further refused burst waits longer."""
        self._busy.append(request)
        if now_ns >= self._retry_at_ns:
            self._retry_at_ns = now_ns + self._retry_ns
            self._retry_ns = min(2 * self._retry_ns, MAX_RETRY_NS)
