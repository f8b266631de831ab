"""Clients that left too many answers unread, and the requests that they lost by it. Pure: no socket, no clock.

Such a client is still connected, so nothing else tells it: it would wait until it asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..messages import ErrorFacts, Refused
from .delivery import Delivery

TELL_EVERY_NS = 1_000_000_000
MAX_LOST = 10_000
"""Lost requests of one client that it is told of; of more, those that it lost first."""


class UnreadClients:
    """Clients whose answers could not be sent, each with its lost requests in the order of their loss."""

    def __init__(self) -> None:
        self._lost: dict[bytes, dict[str, None]] = {}
        self._told_ns = 0

    def lose(self, identity: bytes, request_ids: Iterable[str]) -> bool:
        """Note requests of a client that have no answer; return whether the client had lost none before."""
        is_new = identity not in self._lost
        lost = self._lost.setdefault(identity, {})
        for request_id in request_ids:
            if request_id and len(lost) < MAX_LOST:
                lost[request_id] = None
        return is_new

    def discard(self, identity: bytes, request_id: str) -> None:
        """Note that a client need not be told of a request: it has its end, or has submitted it again by itself."""
        if identity in self._lost:
            self._lost[identity].pop(request_id, None)

    def forget(self, identity: bytes) -> None:
        """Forget a client that has gone, or was told of everything."""
        self._lost.pop(identity, None)

    def due(self, now_ns: int) -> dict[bytes, Sequence[str]]:
        """Return client -> its lost requests, once in `TELL_EVERY_NS`; empty before."""
        if not self._lost or now_ns - self._told_ns < TELL_EVERY_NS:
            return {}
        self._told_ns = now_ns
        return {identity: list(lost) for identity, lost in self._lost.items()}

    def tell(self, deliver: Callable[[bytes, Refused], Delivery], high_water: int, now_ns: int) -> None:
        """Tell clients that read again which requests they have lost, by `deliver` (`Router.deliver`)."""
        for identity, request_ids in self.due(now_ns).items():
            told: list[str] = []
            delivery: Delivery = "sent"
            for request_id in request_ids:
                delivery = deliver(identity, refusal_of(request_id, high_water))
                if delivery != "sent":
                    break
                told.append(request_id)
            if delivery == "gone":
                self.forget(identity)
            else:
                self.on_told(identity, told)

    def on_told(self, identity: bytes, request_ids: Sequence[str]) -> None:
        """Note that a client was sent the refusals of these requests, which may be none of the due ones."""
        lost = self._lost.get(identity, {})
        for request_id in request_ids:
            lost.pop(request_id, None)
        if not lost:
            self.forget(identity)


def refusal_of(request_id: str, high_water: int) -> Refused:
    """Return the end of a lost request: a client that submits it again, with the tokens that it has, loses nothing."""
    what = f"the client left {high_water:,} answers unread, so this request was dropped"
    remedy = "Read answers as they come, and submit it again with the tokens that arrived"
    return Refused(request_id, ErrorFacts("busy", what, "client", remedy))
