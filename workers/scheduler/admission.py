"""Choice of the waiting requests that are prefilled next: clients in turn, as rows, tokens and KV memory allow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from .limits import ComputeInfo, SchedulerLimits
from .requests import RequestState
from .units import UnitState, reserved_bytes
from .waiting_queue import WaitingQueue

MAX_LOOK_AHEAD = 64


@dataclass(frozen=True, slots=True)
class Room:
    """Room for a prefill: limits, and the units that already take rows and memory."""

    limits: SchedulerLimits
    compute: ComputeInfo
    units: list[UnitState]

    @property
    def rows(self) -> int:
        """Return how many more rows may run."""
        return self.limits.batch_size - sum(len(unit.rows) for unit in self.units)

    def fits(self, picked: list[RequestState], request: RequestState) -> bool:
        """Tell whether `request` may join the requests already picked."""
        chosen = [*picked, request]
        if picked and _prefill_tokens(chosen) > self.limits.prefill_tokens:
            return False
        return reserved_bytes(self.units, self.compute, chosen) <= self.limits.kv_bytes


def pick_prefill(waiting: WaitingQueue, room: Room) -> list[RequestState]:
    """Return the requests of the next prefill. The head of the queue is always among them, so no request starves.

    A request on which compute died runs alone. Batch-invariant requests and others never share a unit. If the model
    cannot pad, the others are those of the next `MAX_LOOK_AHEAD` requests whose prompts are as long as the head's.
    """
    if room.rows < 1 or not len(waiting):
        return []
    head = next(iter(waiting))
    if head.deaths:
        return [head] if room.fits([], head) else []
    return _pick(_candidates(waiting, head, room.compute), room)


def _candidates(waiting: WaitingQueue, head: RequestState, compute: ComputeInfo) -> Iterable[RequestState]:
    if head.batch_invariant or compute.padding:
        return _same_kind(waiting, head)
    return (request for request in islice(waiting, MAX_LOOK_AHEAD) if _fits_head(request, head))


def _same_kind(waiting: WaitingQueue, head: RequestState) -> Iterator[RequestState]:
    """Yield the requests that are batch-invariant or not as the head is, up to `MAX_LOOK_AHEAD` others."""
    skipped = 0
    for request in waiting:
        if request.batch_invariant == head.batch_invariant:
            yield request
        elif (skipped := skipped + 1) == MAX_LOOK_AHEAD:
            return


def _fits_head(request: RequestState, head: RequestState) -> bool:
    return request.length == head.length and request.batch_invariant == head.batch_invariant


def _prefill_tokens(requests: list[RequestState]) -> int:
    """Return the positions of a prefill, padding included; batch-invariant rows have none."""
    lengths = [request.length for request in requests]
    return sum(lengths) if requests[0].batch_invariant else len(lengths) * max(lengths)


def _pick(candidates: Iterable[RequestState], room: Room) -> list[RequestState]:
    picked: list[RequestState] = []
    for request in candidates:
        if len(picked) == room.rows or request.deaths or not room.fits(picked, request):
            break
        picked.append(request)
    return picked


def worth_waiting_until_ns(waiting: WaitingQueue, room: Room, last_arrival_ns: int) -> int:
    """Return until when a prefill should wait for more requests of a burst, in monotonic ns; 0: it need not wait.

    A prefill streams all weights whatever its size, so one for the whole burst costs least.
    """
    if not len(waiting) or len(waiting) >= room.rows:
        return 0
    oldest_ns = waiting.oldest.accepted_ns
    return min(last_arrival_ns + room.limits.gather_ns, oldest_ns + room.limits.gather_limit_ns)
