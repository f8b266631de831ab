"""Choice of the waiting requests that are prefilled next: clients in turn, as rows, tokens and KV memory allow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from .limits import ComputeInfo, SchedulerLimits
from .prefixes import FoundPrefix, PrefixIndex
from .requests import RequestState
from .units import UnitState, is_chunked, reserved_bytes
from .waiting_queue import WaitingQueue

MAX_LOOK_AHEAD = 64
MIN_SHARED = 128
"""Positions that one more step must save at least: on a CPU this many take about as long as a step's weights."""


@dataclass(frozen=True, slots=True)
class Room:
    """Room for a prefill: limits, and the units that already take rows and memory."""

    limits: SchedulerLimits
    compute: ComputeInfo
    units: list[UnitState]
    prefixes: PrefixIndex
    _found: dict[int, FoundPrefix] = field(default_factory=dict)

    @property
    def filling(self) -> list[RequestState]:
        """Return the request whose prompt is being prefilled in chunks, if there is one.

        A prefill may take no longer than one of the chunks then.
        """
        return [request for unit in self.units if unit.filling for request in unit.rows.values()]

    def found(self, request: RequestState) -> FoundPrefix:
        """Return the prefix with which a row may begin."""
        if request.number not in self._found:
            self._found[request.number] = self.prefixes.find(request)
        return self._found[request.number]

    def rest(self, request: RequestState) -> int:
        """Return the positions of a row that are not in its prefix."""
        return request.length - self.found(request).count

    def chunk(self, request: RequestState) -> int:
        """Return the most positions of a request that one step prefills; 0: all."""
        whole = request.attachment or not self.compute.extending
        return 0 if whole else self.limits.prefill_chunk

    def is_chunked(self, request: RequestState) -> bool:
        """Tell whether the prefill of a request takes several steps. Such a request has a unit of its own."""
        return is_chunked(request, self.chunk(request), self.found(request).count)

    @property
    def positions(self) -> int:
        """Return the most padded positions of a prefill of several requests."""
        limits = self.limits
        return min(limits.prefill_tokens, limits.prefill_chunk) if self.filling else limits.prefill_tokens

    @property
    def rows(self) -> int:
        """Return how many more rows may run."""
        return self.limits.batch_size - sum(len(unit.rows) for unit in self.units)

    def fits(self, picked: list[RequestState], request: RequestState) -> bool:
        """Tell whether `request` may join the requests already picked."""
        chosen = [*picked, request]
        if picked and self._prefill_tokens(chosen) > self.positions:
            return False
        return reserved_bytes(self.units, self.compute, chosen) <= self.limits.kv_bytes

    def spare_positions(self, picked: Sequence[RequestState] = ()) -> int:
        """Return the positions for which kept prefixes have memory beside all rows and those picked."""
        spare_bytes = self.limits.kv_bytes - reserved_bytes(self.units, self.compute, picked)
        return spare_bytes // max(1, self.compute.kv_bytes_per_position)

    def waits_for_prefix(self, running: list[RequestState], waiting: list[RequestState]) -> bool:
        """Tell whether the first of `waiting` should wait until one of `running` has computed their common prefix.

        That takes one more step, so enough has to be saved for all that wait; and the copy needs memory beside them.
        """
        saved = {
            request.number: max((self.prefixes.shared(request, other) for other in running), default=0)
            for request in waiting
        }
        if not waiting or not saved[waiting[0].number] or sum(saved.values()) < MIN_SHARED:
            return False
        sharing = [request for request in waiting if saved[request.number]]
        copied = max(saved[request.number] + self.found(request).count for request in sharing)
        newcomers = [request for request in running if request not in self.filling]
        return copied <= self.spare_positions([*newcomers, *sharing])

    def _prefill_tokens(self, requests: list[RequestState]) -> int:
        """Return the positions of a prefill, padding included; batch-invariant rows have none."""
        rests = [self.rest(request) for request in requests]
        return sum(rests) if requests[0].batch_invariant else len(rests) * max(rests)


def pick_prefill(waiting: WaitingQueue[RequestState], room: Room) -> list[RequestState]:
    """Return the requests of the next prefill. The head of the queue is always among them, so no request starves.

    A request on which compute died runs alone, and so does one whose prefill takes several steps, one such at a time.
    Batch-invariant requests and others never share a unit. If the model cannot pad, the others are those of the next
    `MAX_LOOK_AHEAD` requests whose prompts are as long as the head's. Nobody overtakes a request that waits for another
    to compute their common prefix.
    """
    if room.rows < 1 or not len(waiting):
        return []
    head = next(iter(waiting))
    if room.filling and (room.is_chunked(head) or room.waits_for_prefix(room.filling, [head])):
        return []
    if head.deaths or room.is_chunked(head):
        return [head] if room.fits([], head) else []
    return _pick(list(islice(_candidates(waiting, head, room.compute), room.rows)), room)


def _candidates(
    waiting: WaitingQueue[RequestState], head: RequestState, compute: ComputeInfo
) -> Iterable[RequestState]:
    if head.batch_invariant or compute.padding:
        return _same_kind(waiting, head)
    return (request for request in islice(waiting, MAX_LOOK_AHEAD) if _fits_head(request, head))


def _same_kind(waiting: WaitingQueue[RequestState], head: RequestState) -> Iterator[RequestState]:
    """Yield the requests that are batch-invariant or not as the head is, up to `MAX_LOOK_AHEAD` others."""
    skipped = 0
    for request in waiting:
        if request.batch_invariant == head.batch_invariant:
            yield request
        elif (skipped := skipped + 1) == MAX_LOOK_AHEAD:
            return


def _fits_head(request: RequestState, head: RequestState) -> bool:
    return request.length == head.length and request.batch_invariant == head.batch_invariant


def _pick(candidates: list[RequestState], room: Room) -> list[RequestState]:
    picked: list[RequestState] = []
    for index, request in enumerate(candidates):
        alone = request.deaths or room.is_chunked(request)
        if alone or not room.fits(picked, request) or room.waits_for_prefix(picked, candidates[index:]):
            break
        picked.append(request)
    return picked


def worth_waiting_until_ns(waiting: WaitingQueue[RequestState], room: Room, last_arrival_ns: int) -> int:
    """Return until when a prefill should wait for more requests of a burst, in monotonic ns; 0: it need not wait.

    A prefill streams all weights whatever its size, so one for the whole burst costs least.
    """
    if not len(waiting) or len(waiting) >= room.rows:
        return 0
    oldest_ns = waiting.oldest.accepted_ns
    return min(last_arrival_ns + room.limits.gather_ns, oldest_ns + room.limits.gather_limit_ns)
