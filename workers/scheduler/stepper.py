"""Steps and units: numbers, steps in flight, and the messages that keep compute's units equal to the scheduler's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...ipc.messages import DropUnit, ErrorFacts, PredictStep, RequestRow, RowDetails, RunStep, Split, Stepped
from .events import SchedulerAction, ToCompute, ToPredictor
from .limits import ComputeInfo
from .prediction_requests import PredictionRequests
from .requests import RequestState
from .units import Decode, SplitUnit, UnitState, can_join, is_chunked, next_decode

MAX_STEPS_IN_FLIGHT = 2


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """Result of one step: new tokens and failures of requests that still run."""

    unit: UnitState
    tokens: list[tuple[RequestState, int]]
    failed: list[tuple[RequestState, ErrorFacts]]
    was_prefill: bool
    exchanged: bool
    """Rows of other units joined this step."""
    details: list[tuple[RequestState, RowDetails]]


class Stepper:
    """Units that compute holds after all messages sent so far. Numbers of steps and units strictly grow."""

    def __init__(self, first_number: int, prediction_requests: PredictionRequests | None = None) -> None:
        self._prediction_requests = prediction_requests or PredictionRequests()
        self.units: dict[int, UnitState] = {}
        self.number = first_number
        """Number of the newest step or unit."""
        self._in_flight: dict[int, UnitState] = {}
        self._exchanged: set[int] = set()
        """Numbers of steps in flight that rows of other units joined."""
        self._holders: dict[int, UnitState] = {}
        self._last_chunk = first_number
        """Number of the newest step that ran a chunk, or a prefill between two chunks."""

    @property
    def steps_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def full(self) -> bool:
        """Tell whether compute has a step to run and one to continue with."""
        return len(self._in_flight) >= MAX_STEPS_IN_FLIGHT

    @property
    def prefilling(self) -> bool:
        return any(unit.prefilling for unit in self._in_flight.values())

    @property
    def active(self) -> list[UnitState]:
        """Return the units with rows that decode, without those whose rows move to another unit."""
        return [unit for unit in self.units.values() if unit.rows and not unit.migrating and not unit.filling]

    @property
    def filling(self) -> UnitState | None:
        """Return the unit of which another chunk is to be prefilled; there is one at most."""
        return next((unit for unit in self.units.values() if unit.filling), None)

    @property
    def owes_decode(self) -> bool:
        """Tell whether rows wait for a decode step since the last chunk of another's prompt was sent."""
        return any(unit.last_step < self._last_chunk for unit in self.active)

    def may_exchange(self, compute: ComputeInfo) -> bool:
        """Tell whether there are several units whose rows may change places, and no prefill or move is under way."""
        settled = not any(unit.prefilling or unit.migrating for unit in self.units.values())
        return settled and len(self.active) > 1 and can_join(self.active, compute)

    @property
    def running_suspect(self) -> bool:
        """Tell whether a request on which compute died runs, which it does alone."""
        return any(request.deaths for unit in self._in_flight.values() for request in unit.rows.values())

    @property
    def row_count(self) -> int:
        return sum(len(unit.rows) for unit in self.units.values())

    def prefill(self, requests: list[RequestState], rows: list[RequestRow]) -> list[SchedulerAction]:
        """Start a new unit with these rows; of a single one that is longer than its chunk only the first chunk runs."""
        between_chunks = self.filling is not None
        unit = self._new_unit(requests)
        unit.prefilling = True
        if len(rows) == 1 and is_chunked(requests[0], rows[0].chunk, rows[0].cached):
            unit.filled = rows[0].cached
            return self._run_chunk(unit, rows[0], rows[0].chunk, requests[0].prefill_length, admit=rows)
        actions = self._run(unit, self._prediction_requests.prefill(self.number + 1, rows), admit=rows)
        if between_chunks:
            self._last_chunk = self.number
        return actions

    def prefill_chunk(self, unit: UnitState) -> list[SchedulerAction]:
        """Run the next chunk of an idle unit that is `filling`."""
        unit.prefilling = True
        (request,) = unit.rows.values()
        return self._run_chunk(unit, request.row(), unit.chunk, unit.fill_to, continues=True)

    def choose(self, keep: int, compute: ComputeInfo) -> tuple[Decode | None, list[SchedulerAction]]:
        """Return the next step of an idle unit, or None to wait, and the actions that must come before it."""
        actions: list[SchedulerAction] = []
        settled = not any(unit.migrating for unit in self.units.values())
        while isinstance(choice := next_decode(self.active, compute, keep, settled), SplitUnit):
            actions.append(self._move(choice.unit, choice.rows)[1])
        return choice, actions

    def decode(self, choice: Decode, predict: bool) -> list[SchedulerAction]:
        """Run the chosen step with the rows that join it; `predict`: ask for a prediction before."""
        unit = choice.unit
        arrivals = [other for other in self.units.values() if other.rows and other.target is unit]
        actions: list[SchedulerAction] = []
        joined: list[int] = []
        for other in arrivals + choice.joins:
            joining, split = self._detach_leaving(other)
            actions += split
            joined.append(joining.number)
            self._absorb(unit, joining)
        dropped = list(unit.leaving)
        unit.leaving.clear()
        request = self._prediction_requests.decode(self.number + 1, unit.rows.values())
        actions += self._run(unit, request, drop=dropped, join=joined, predict=predict)
        if arrivals:
            self._exchanged.add(self.number)
        return actions

    def exchange(self, moves: dict[int, UnitState]) -> list[SchedulerAction]:
        """Move rows (by number) out of their idle units; they join the given units at the next steps of these."""
        actions: list[SchedulerAction] = []
        for unit in self.active:
            for target in dict.fromkeys(moves[row] for row in unit.rows if row in moves):
                part, action = self._move(unit, [row for row in unit.rows if moves.get(row) is target])
                part.target = target
                actions.append(action)
        return actions

    def unit_of(self, request: RequestState) -> int | None:
        """Return the number of the unit that holds the row of a request; None: it has no row."""
        unit = self._holders.get(request.number)
        return None if unit is None else unit.number

    def leave(self, request: RequestState) -> None:
        """Mark the row of an ended request: it leaves compute before the unit's next step."""
        if (unit := self._holders.pop(request.number, None)) is not None:
            unit.leave(request)

    def drop_empty_units(self) -> list[SchedulerAction]:
        """Drop units without rows; they run no further step."""
        empty = [unit for unit in self.units.values() if not unit.rows and unit.step is None]
        return [self._drop_unit(unit) for unit in empty]

    def finish(self, stepped: Stepped) -> StepOutcome | None:
        """Return the result of a step; None if it is not in flight (it is an earlier compute's)."""
        unit = self._in_flight.pop(stepped.number, None)
        if unit is None:
            return None
        was_prefill, unit.step, unit.prefilling = unit.prefilling, None, False
        exchanged = stepped.number in self._exchanged
        self._exchanged.discard(stepped.number)
        live = unit.rows
        tokens = [(live[row], token) for row, token in zip(stepped.rows, stepped.tokens, strict=True) if row in live]
        failed = [(live[row], error) for row, error in stepped.failed.items() if row in live]
        details = [(live[row], found) for row, found in stepped.details.items() if row in live]
        for row in stepped.failed:
            self._evict(unit, row)
        return StepOutcome(unit, tokens, failed, was_prefill, exchanged, details)

    def drop_all(self) -> tuple[list[RequestState], list[RequestState]]:
        """Drop all units after a death of compute; return their requests, and those whose step was in flight."""
        suspects = [request for unit in self._in_flight.values() for request in unit.rows.values()]
        lost = [request for unit in self.units.values() for request in unit.rows.values()]
        self.units.clear()
        self._in_flight.clear()
        self._exchanged.clear()
        self._holders.clear()
        return lost, suspects

    def _run_chunk(
        self, unit: UnitState, row: RequestRow, chunk: int, fill_to: int, **what: Any
    ) -> list[SchedulerAction]:
        begin, unit.chunk, unit.fill_to = unit.filled, chunk, fill_to
        unit.filled = min(begin + chunk, fill_to)
        end = unit.filled if unit.filled < fill_to else None  # the last chunk takes what a row brings along
        actions = self._run(unit, self._prediction_requests.chunk(self.number + 1, row, begin, end), **what)
        self._last_chunk = self.number
        return actions

    def _run(self, unit: UnitState, request: PredictStep, predict: bool = True, **what: Any) -> list[SchedulerAction]:
        self.number = request.step
        unit.step = unit.last_step = self.number
        self._in_flight[self.number] = unit
        invariant = unit.batch_invariant
        step = RunStep(number=self.number, unit=unit.number, predict=predict, batch_invariant=invariant, **what)
        return [ToPredictor(request), ToCompute(step)] if predict else [ToCompute(step)]

    def _detach_leaving(self, unit: UnitState) -> tuple[UnitState, list[SchedulerAction]]:
        """Return the unit's rows without ended ones: `RunStep.drop` names rows of the running unit alone."""
        if not unit.leaving:
            return unit, []
        rest, split = self._move(unit, list(unit.rows))
        return rest, [split, self._drop_unit(unit)]

    def _move(self, unit: UnitState, rows: list[int]) -> tuple[UnitState, SchedulerAction]:
        part = self._new_unit([unit.rows.pop(number) for number in rows])
        part.last_step = unit.last_step
        return part, ToCompute(Split(unit=unit.number, rows=rows, into=part.number))

    def _absorb(self, unit: UnitState, other: UnitState) -> None:
        del self.units[other.number]
        unit.rows.update(other.rows)
        self._holders.update(dict.fromkeys(other.rows, unit))
        other.rows.clear()  # no unit may keep it as its target

    def _new_unit(self, requests: list[RequestState]) -> UnitState:
        self.number += 1
        unit = UnitState.of(self.number, requests)
        self.units[unit.number] = unit
        self._holders.update(dict.fromkeys(unit.rows, unit))
        return unit

    def _drop_unit(self, unit: UnitState) -> SchedulerAction:
        del self.units[unit.number]
        return ToCompute(DropUnit(unit.number))

    def _evict(self, unit: UnitState, number: int) -> None:
        """Remove a failed row, which compute has already dropped."""
        unit.rows.pop(number, None)
        unit.leaving.pop(number, None)
        self._holders.pop(number, None)
