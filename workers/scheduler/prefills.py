"""Choice of the prefill that runs next: one of waiting requests, or the next chunk of a long prompt."""

from __future__ import annotations

from dataclasses import replace

from ...ipc.messages import DropPrefix, RequestRow
from .admission import Room, pick_prefill, worth_waiting_until_ns
from .events import SchedulerAction, ToCompute
from .prefixes import FoundPrefix, PrefixIndex
from .requests import RequestState
from .stepper import Stepper
from .waiting_queue import WaitingQueue

MAX_PREFILLS_IN_A_ROW = 4


class Prefills:
    """Starts requests, and continues the prompt that is prefilled in chunks; both in turn, so short prompts pass it.

    Running rows decode between two chunks, each of them once. So they never wait for more than one chunk.
    """

    def __init__(self, waiting: WaitingQueue[RequestState], stepper: Stepper, prefixes: PrefixIndex) -> None:
        self._waiting, self._stepper, self._prefixes = waiting, stepper, prefixes
        self._chunk_is_next = True
        self.last_arrival_ns = 0
        self.in_a_row = 0
        """Prefills since the last decode step."""

    @property
    def owe_decode(self) -> bool:
        """Tell whether running rows have waited long enough: a decode step goes before the next prefill."""
        return self._stepper.owes_decode or self.in_a_row >= MAX_PREFILLS_IN_A_ROW

    def wait_until_ns(self, room: Room) -> int:
        """Return until when the next prefill waits for more requests, in monotonic ns; 0: it does not wait."""
        return worth_waiting_until_ns(self._waiting, room, self.last_arrival_ns)

    def next(self, room: Room, now_ns: int) -> list[SchedulerAction]:
        """Return the actions of the next prefill or chunk; none if there is none to run now."""
        if self._stepper.prefilling:
            return []
        if self._chunk_is_next and (actions := self._continue()):
            return actions
        return self._start(room, now_ns) or self._continue()

    def _continue(self) -> list[SchedulerAction]:
        unit = self._stepper.filling
        if unit is None or (self._stepper.steps_in_flight and any(request.deaths for request in unit.rows.values())):
            return []
        self._chunk_is_next = False
        self.in_a_row += 1
        return self._stepper.prefill_chunk(unit)

    def _start(self, room: Room, now_ns: int) -> list[SchedulerAction]:
        if self.wait_until_ns(room) > now_ns:
            return []
        picked = pick_prefill(self._waiting, room)
        if not picked or (picked[0].deaths and self._stepper.steps_in_flight):
            return []
        if dropped := self._prefixes.make_room(picked, room.spare_positions(picked)):
            return [ToCompute(DropPrefix(dropped)), *self._start(replace(room, _found={}), now_ns)]
        rows = self._rows(picked, room)
        for request, row in zip(picked, rows, strict=True):
            self._waiting.start(request)
            if request.started_ns is None:
                request.started_ns, request.cached_tokens = now_ns, min(row.cached, len(request.prompt_ids))
        self._chunk_is_next = True
        self.in_a_row += 1
        return self._stepper.prefill(picked, rows)

    def _rows(self, picked: list[RequestState], room: Room) -> list[RequestRow]:
        """Return the rows of a prefill, each with what it takes from its prefix.

        Padded rows run the same columns, so each computes as many positions as the one with the longest rest.
        """
        rest = max(room.rest(request) for request in picked)
        rows: list[RequestRow] = []
        for request in picked:
            found = room.found(request)
            cached = found.count if request.batch_invariant else max(request.length - rest, 0)
            used = FoundPrefix(found.blocks[: -(-cached * len(found.blocks) // max(found.count, 1))], cached)
            self._prefixes.use(request, used)
            rows.append(request.row(room.chunk(request), used.count, used.blocks))
        return rows

    def keep_prefix(self, request: RequestState, room: Room) -> list[SchedulerAction]:
        """Keep what a row has computed, as far as there is room, for rows that begin alike."""
        unit = self._stepper.unit_of(request)
        if unit is None:
            return []
        kept, dropped = self._prefixes.keep(request, unit, room.spare_positions())
        actions: list[SchedulerAction] = [ToCompute(DropPrefix(dropped))] if dropped else []
        return actions + ([ToCompute(kept)] if kept else [])
