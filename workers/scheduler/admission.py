"""Which waiting requests are prefilled next: in order of arrival, as many as rows, tokens and KV memory allow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from .facts import ComputeFacts, Limits
from .requests import Request, WaitingLine
from .units import Unit, reserved_bytes

LOOK_AHEAD = 64


@dataclass(frozen=True, slots=True)
class Room:
    """What is free for a prefill."""

    limits: Limits
    compute: ComputeFacts
    units: list[Unit]

    @property
    def rows(self) -> int:
        return self.limits.batch_size - sum(len(unit.rows) for unit in self.units)

    def fits(self, picked: list[Request], request: Request) -> bool:
        """Whether `request` may join those already picked."""
        chosen = [*picked, request]
        padded_tokens = len(chosen) * max(each.length for each in chosen)
        if picked and padded_tokens > self.limits.prefill_tokens:
            return False
        return reserved_bytes(self.units, self.compute, chosen) <= self.limits.kv_bytes


def pick_prefill(waiting: WaitingLine, room: Room) -> list[Request]:
    """The rows of the next prefill. The head of the line is always among them, so nobody starves.

    A request under suspicion of killing compute comes alone. Where the model cannot pad, the prompts as long as the
    head's are taken out of the next few in line.
    """
    if room.rows < 1 or not len(waiting):
        return []
    head = next(iter(waiting))
    if head.deaths:
        return [head] if room.fits([], head) else []
    return _pick(_candidates(waiting, head, room.compute), room)


def _candidates(waiting: WaitingLine, head: Request, compute: ComputeFacts) -> Iterable[Request]:
    if compute.padding:
        return waiting
    return (request for request in islice(waiting, LOOK_AHEAD) if request.length == head.length)


def _pick(candidates: Iterable[Request], room: Room) -> list[Request]:
    picked: list[Request] = []
    for request in candidates:
        if len(picked) == room.rows or request.deaths or not room.fits(picked, request):
            break
        picked.append(request)
    return picked


def worth_waiting_until_ns(waiting: WaitingLine, room: Room, last_arrival_ns: int) -> int:
    """A prefill streams all weights whatever its size, so a burst of requests is gathered before the first runs."""
    if not len(waiting) or len(waiting) >= room.rows:
        return 0
    oldest_ns = next(iter(waiting)).accepted_ns
    return min(last_arrival_ns + room.limits.gather_ns, oldest_ns + room.limits.gather_limit_ns)
