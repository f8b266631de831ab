"""The order in which accepted requests start: by priority, and clients in turn within one priority."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from typing import Generic, Protocol, TypeVar

from .requests import Client


class QueuedRequest(Protocol):
    """A request as the queue sees it: the scheduler's `RequestState`, or a stream of a cluster."""

    number: int
    """Order of arrival, and name within the queue."""
    priority: int
    accepted_ns: int
    started_ns: int | None

    @property
    def client(self) -> Client:
        """Return who takes turns with others."""
        ...

    @property
    def positions(self) -> int:
        """Return the KV positions that it reserves."""
        ...


R = TypeVar("R", bound=QueuedRequest)


@dataclass
class _Account:
    """Account of a client: what it was given, as a point on the clock, and the number of its latest turn."""

    mark: float
    turn: int = 0

    @property
    def order(self) -> tuple[float, int]:
        """Return what clients are ordered by."""
        return self.mark, self.turn


class ClientTurns(Generic[R]):
    """Waiting requests of one priority, in the order of their starts. Clients take turns, by the tokens they are given.

    It is weighted fair queueing with equal weights. A start moves its client's mark on by the positions that the
    request reserves; the client with the lowest mark starts next, its oldest request first, and of equals the one
    served least recently. The clock moves on by the same positions, divided by the clients that wait, but stays within
    one request of the lowest mark, and never goes back. Whoever comes is set to the clock: idle clients save nothing
    up, and newcomers start soon without starving those that wait. While a client waits, another is given at most two of
    the largest requests.
    """

    def __init__(self) -> None:
        self._queues: dict[Client, OrderedDict[int, R]] = {}
        self._accounts: dict[Client, _Account] = {}
        """Those of clients that wait, and of others that are ahead of the clock."""
        self._clock = 0.0
        self._turns = 0

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __iter__(self) -> Iterator[R]:
        """Yield all requests in the order in which they would start if none were added or removed."""
        queues = {client: iter(list(queue.values())) for client, queue in self._queues.items()}
        heap = [(*self._accounts[client].order, place, client) for place, client in enumerate(self._queues)]
        heapify(heap)
        turns = self._turns
        while heap:
            mark, _, place, client = heap[0]
            if (request := next(queues[client], None)) is None:
                heappop(heap)
                continue
            yield request
            turns += 1
            heapreplace(heap, (mark + request.positions, turns, place, client))

    def join(self, request: R, client: Client) -> None:
        """Add a request at the end of its client's queue."""
        if client not in self._queues:
            self._queues[client] = OrderedDict()
            account = self._accounts.setdefault(client, _Account(self._clock))
            account.mark = max(account.mark, self._clock)
        self._queues[client][request.number] = request

    def count_turn(self, request: R, client: Client) -> None:
        """Count the turn of a client, whose `request` starts."""
        self._turns += 1
        account = self._accounts[client]
        account.mark, account.turn = account.mark + request.positions, self._turns
        lowest = min(self._accounts[waiting].mark for waiting in self._queues)
        clock = self._clock + request.positions / len(self._queues)
        self._clock = max(self._clock, lowest, min(clock, lowest + request.positions))  # it never goes back

    def leave(self, request: R, client: Client) -> None:
        """Remove a request."""
        del self._queues[client][request.number]
        if not self._queues[client]:
            del self._queues[client]
            self._forget_even()

    def _forget_even(self) -> None:
        """Forget clients that do not wait and are not ahead of the clock: they come back as newcomers do."""
        gone = self._accounts.keys() - self._queues.keys()
        for client in [client for client in gone if self._accounts[client].mark <= self._clock]:
            del self._accounts[client]


class WaitingQueue(Generic[R]):
    """Accepted requests that do not run yet, in the order of their starts.

    Requests that compute lost go ahead of all others. Then a lower `priority` starts first, and within one priority
    clients take turns. Nothing raises a priority with time: the highest numbers wait as long as there are others.
    """

    def __init__(self) -> None:
        self._all: OrderedDict[int, R] = OrderedDict()
        self._lost: OrderedDict[int, R] = OrderedDict()
        self._client: dict[int, Client] = {}
        """Request number -> the client in whose queue it waits; lost requests are in none."""
        self._levels: dict[int, ClientTurns[R]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[R]:
        """Yield all requests in the order in which they would start if none were added or removed."""
        yield from list(self._lost.values())
        for priority in sorted(self._levels):
            yield from self._levels[priority]

    @property
    def oldest(self) -> R:
        """Return the request that has waited longest; there must be one."""
        return next(iter(self._all.values()))

    @property
    def oldest_ns(self) -> int:
        """Return when the one that waits longest for its first start was accepted, in monotonic ns; 0: none does."""
        unstarted = (request.accepted_ns for request in self._all.values() if request.started_ns is None)
        return next(unstarted, 0)  # requests that have started are few, and before the others

    def join(self, request: R) -> None:
        """Add a request at the end of its client's queue."""
        self._all[request.number] = request
        self._client[request.number] = request.client
        self._levels.setdefault(request.priority, ClientTurns[R]()).join(request, request.client)

    def put_back(self, requests: list[R]) -> None:
        """Return running requests to the front, in the order of their arrival."""
        for request in sorted(requests, key=lambda request: request.number, reverse=True):
            for queue in (self._all, self._lost):
                queue[request.number] = request
                queue.move_to_end(request.number, last=False)

    def follow(self, request: R) -> None:
        """Move a waiting request to the queue of the identity under which its client reconnected."""
        if self._client.get(request.number, request.client) != request.client:
            self.leave(request)
            self.join(request)

    def start(self, request: R) -> None:
        """Remove a request that starts, and count its client's turn."""
        client = self._client.get(request.number)
        if client is not None:
            self._levels[request.priority].count_turn(request, client)
        self.leave(request)

    def leave(self, request: R) -> None:
        """Remove a request if it is in the queue."""
        self._all.pop(request.number, None)
        self._lost.pop(request.number, None)
        client = self._client.pop(request.number, None)
        if client is not None:
            level = self._levels[request.priority]
            level.leave(request, client)
            if not level:
                del self._levels[request.priority]
