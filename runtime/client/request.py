"""A request of a client from submission to its end, whichever engine and scheduler runs it. No socket, no clock."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count

import msgspec

from ...errors import ExpertFlowError
from ...ipc.messages import Finished, RoutedExperts, Submit, Timings, TokenLogprob
from ..text.output_text import OutputText


class BatchUpdates:
    """Indices of a batch's requests with unread updates, each once, in order of arrival."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[], None]] = []
        """Functions that are called at every update."""
        self._pending: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, index: int) -> None:
        """Note an update of a request, and call the listeners."""
        self._pending[index] = None
        self.wake()

    def take(self) -> int:
        """Remove and return the index that has waited longest."""
        index = next(iter(self._pending))
        del self._pending[index]
        return index

    def wake(self) -> None:
        """Call the listeners, though there may be no update."""
        for listener in self.listeners:
            listener()


@dataclass(slots=True, eq=False)
class ClientRequest:
    """One request of a batch, from submission to its end."""

    index: int
    submit: Submit
    updates: BatchUpdates
    """Updates of the batch, shared by all its requests."""
    wait_when_busy: bool = True
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Logprobs of all tokens, or of none."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    routed_experts: RoutedExperts | None = None
    deadline_ns: int | None = None
    """Deadline (monotonic ns), counted from submission; it ends a request that was never sent, too."""
    under_way: bool = False
    """Set while a scheduler has the request."""
    cancelled: bool = False
    text: OutputText | None = None
    """Text of the output; None: nothing of it is looked at here."""
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """The stop string, or the id of `stop_ids`, that ended the output."""
    timings: Timings | None = None
    cached_tokens: int = 0
    error: ExpertFlowError | None = None

    @property
    def ended(self) -> bool:
        """Return whether the request has finished or failed."""
        return self.finish_reason is not None or self.error is not None

    def notify(self) -> None:
        """Notify the batch of an update."""
        self.updates.add(self.index)

    def add_output(self, token_ids: list[int], offset: int, logprobs: list[TokenLogprob]) -> bool:
        """Append the tokens that are new, with their logprobs; return whether there was one.

        The ids begin at `offset` of the output, the logprobs belong to the last of them.
        """
        fresh = [] if self.meets_stop else token_ids[len(self.tokens) - offset :]
        self.tokens += fresh
        if fresh:
            self.logprobs += logprobs[-len(fresh) :]
            self._cut_at_stop(done=False)
        return bool(fresh)

    @property
    def meets_stop(self) -> bool:
        """Return whether a stop string ends the output; the engine need not go on."""
        return self.text is not None and self.text.stop_string is not None

    @property
    def positions_to_stop(self) -> int | None:
        """Return how many positions were computed before the stop string was there; None without a stop string."""
        return len(self.submit.prompt_ids) + len(self.tokens) - 1 if self.meets_stop else None

    def finish(self, message: Finished) -> None:
        """End with what the scheduler says; an output that a stop string has ended keeps its end."""
        self.add_output(message.token_ids, 0, message.logprobs)
        self._cut_at_stop(done=True)
        self.prompt_logprobs, self.routed_experts = message.prompt_logprobs, message.routed_experts
        self.cached_tokens = message.cached_tokens
        self._end(message.finish_reason, message.timings)

    def to_send(self, now_ns: int, origin: str = "", attempt: int = 0) -> Submit:
        """Return the message for a scheduler, with the remaining time and the output that was delivered before."""
        left_ms = None if self.deadline_ns is None else max(1, (self.deadline_ns - now_ns) // 1_000_000)
        changes = {"resume_ids": list(self.tokens), "deadline_ms": left_ms, "origin": origin, "attempt": attempt}
        return msgspec.structs.replace(self.submit, **changes)

    def end_here(self, reason: str) -> None:
        """Finish without the scheduler: the request never ran, or its scheduler has ended."""
        self._end(reason, Timings(queued_ns=0, first_token_ns=0, total_ns=0))

    def fail(self, error: ExpertFlowError) -> None:
        """End the request with an error, unless a stop string has ended its output already."""
        if self.meets_stop:
            self.end_here("stop")
            return
        self.error = error
        self.notify()

    def _end(self, reason: str, timings: Timings) -> None:
        self.timings = timings
        string = self.text.stop_string if self.text is not None else None
        if string is not None:
            self.finish_reason, self.stop_reason = "stop", string
        else:
            self.finish_reason = reason
            is_id = reason == "stop" and self.tokens and self.tokens[-1] in self.submit.stop_ids
            self.stop_reason = self.tokens[-1] if is_id else None
        self.notify()

    def _cut_at_stop(self, done: bool) -> None:
        """Drop tokens behind the one that completes a stop string."""
        count = self.text.read(self.tokens, done) if self.text is not None else None
        if count is not None:
            del self.tokens[count:], self.logprobs[count:]


class UnsentRequests:
    """Requests that no engine has yet: a lower `priority` first, and first come first served within one."""

    def __init__(self) -> None:
        self._levels: dict[int, deque[ClientRequest]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))

    def __iter__(self) -> Iterator[ClientRequest]:
        """Yield the requests in the order in which they would be taken."""
        return (request for priority in sorted(self._levels) for request in self._levels[priority])

    def append(self, request: ClientRequest) -> None:
        """Add a request behind those of its priority."""
        self._levels.setdefault(request.submit.priority, deque()).append(request)

    def put_back(self, requests: Iterable[ClientRequest]) -> None:
        """Add requests, which keep their order, ahead of those of their priorities."""
        for request in reversed([*requests]):
            self._levels.setdefault(request.submit.priority, deque()).appendleft(request)

    def pop(self) -> ClientRequest:
        """Remove and return the next request; there must be one."""
        priority = min(self._levels)
        request = self._levels[priority].popleft()
        if not self._levels[priority]:
            del self._levels[priority]
        return request

    def clear(self) -> None:
        """Remove all requests."""
        self._levels.clear()


class Deadlines:
    """Deadlines of requests that no scheduler has yet; requests without a deadline are ignored."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, ClientRequest]] = []
        self._counter = count()

    def add(self, request: ClientRequest, now_ns: int) -> None:
        """Add a request; its time runs from the first submission."""
        if request.deadline_ns is None and request.submit.deadline_ms is not None:
            request.deadline_ns = now_ns + request.submit.deadline_ms * 1_000_000
        if request.deadline_ns is not None:
            heapq.heappush(self._heap, (request.deadline_ns, next(self._counter), request))

    def end_overdue(self, now_ns: int) -> None:
        """End overdue requests; the scheduler ends those that are under way."""
        while self._heap and self._heap[0][0] <= now_ns:
            request = heapq.heappop(self._heap)[2]
            if not request.ended and not request.under_way:
                request.end_here("deadline")

    @property
    def next_ns(self) -> int | None:
        """Return the earliest deadline (monotonic ns); None: there is none."""
        return self._heap[0][0] if self._heap else None
