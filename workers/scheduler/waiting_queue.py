"""The order in which accepted requests start: by priority, and clients in turn within one priority."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from .requests import RequestState


class ClientTurns:
    """Waiting requests of one priority, in the order of their starts. Clients take turns.

    In a round, every client that waited at its begin starts one request, its oldest. The client served least recently
    goes first. A round begins with the first start after the last round. So a lone request of a second client starts
    next, however many the first client has. While a client waits, no other starts more than two requests: one in this
    round, one in the next. So no client starves.
    """

    def __init__(self) -> None:
        self._queues: dict[bytes, OrderedDict[int, RequestState]] = {}
        self._served: dict[bytes, int] = {}
        """Waiting client -> number of its latest turn; 0: none yet."""
        self._round: dict[bytes, None] = {}
        """Clients whose turn in this round has not come yet."""
        self._turns = 0

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __iter__(self) -> Iterator[RequestState]:
        """Yield all requests in the order in which they would start if none were added or removed."""
        queues = {client: iter(queue.values()) for client, queue in self._queues.items()}
        clients, turns = self._by_turn(), self._still_to_come() or self._by_turn()
        later = [client for client in clients if client not in turns] + list(turns)
        while turns:
            for client in turns:
                if (request := next(queues[client], None)) is not None:
                    yield request
                else:
                    later.remove(client)
            turns = list(later)

    def join(self, request: RequestState, client: bytes) -> None:
        """Add a request at the end of its client's queue."""
        self._served.setdefault(client, 0)
        self._queues.setdefault(client, OrderedDict())[request.number] = request

    def count_turn(self, client: bytes) -> None:
        """Count the turn of a client, one of whose requests starts."""
        self._round = self._still_to_come() or dict.fromkeys(self._by_turn())
        self._round.pop(client, None)
        self._turns += 1
        self._served[client] = self._turns

    def leave(self, request: RequestState, client: bytes) -> None:
        """Remove a request."""
        del self._queues[client][request.number]
        if not self._queues[client]:
            del self._queues[client], self._served[client]

    def _still_to_come(self) -> dict[bytes, None]:
        return {client: None for client in self._round if client in self._queues}

    def _by_turn(self) -> list[bytes]:
        """Return the waiting clients, the least recently served first."""
        return sorted(self._queues, key=self._served.__getitem__)


class WaitingQueue:
    """Accepted requests that do not run yet, in the order of their starts.

    Requests that compute lost go ahead of all others. Then a lower `priority` starts first, and within one priority
    clients take turns. Nothing raises a priority with time: the highest numbers wait as long as there are others.
    """

    def __init__(self) -> None:
        self._all: OrderedDict[int, RequestState] = OrderedDict()
        self._lost: OrderedDict[int, RequestState] = OrderedDict()
        self._client: dict[int, bytes] = {}
        """Request number -> the client in whose queue it waits; lost requests are in none."""
        self._levels: dict[int, ClientTurns] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[RequestState]:
        """Yield all requests in the order in which they would start if none were added or removed."""
        yield from list(self._lost.values())
        for priority in sorted(self._levels):
            yield from self._levels[priority]

    @property
    def oldest(self) -> RequestState:
        """Return the request that has waited longest; there must be one."""
        return next(iter(self._all.values()))

    def join(self, request: RequestState) -> None:
        """Add a request at the end of its client's queue."""
        self._all[request.number] = request
        self._client[request.number] = request.identity
        self._levels.setdefault(request.priority, ClientTurns()).join(request, request.identity)

    def put_back(self, requests: list[RequestState]) -> None:
        """Return running requests to the front, in the order of their arrival."""
        for request in sorted(requests, key=lambda request: request.number, reverse=True):
            for queue in (self._all, self._lost):
                queue[request.number] = request
                queue.move_to_end(request.number, last=False)

    def follow(self, request: RequestState) -> None:
        """Move a waiting request to the queue of the identity under which its client reconnected."""
        if self._client.get(request.number, request.identity) != request.identity:
            self.leave(request)
            self.join(request)

    def start(self, request: RequestState) -> None:
        """Remove a request that starts, and count its client's turn."""
        client = self._client.get(request.number)
        if client is not None:
            self._levels[request.priority].count_turn(client)
        self.leave(request)

    def leave(self, request: RequestState) -> None:
        """Remove a request if it is in the queue."""
        self._all.pop(request.number, None)
        self._lost.pop(request.number, None)
        client = self._client.pop(request.number, None)
        if client is not None:
            level = self._levels[request.priority]
            level.leave(request, client)
            if not level:
                del self._levels[request.priority]
