"""Steps: numbers, units in flight, and the messages that keep compute's units equal to the scheduler's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...ipc.messages import DropUnit, ErrorFacts, PredictStep, RunStep, Split, Stepped
from .events import SchedulerAction, ToCompute, ToPredictor
from .limits import ComputeInfo
from .prediction_requests import PredictionRequests
from .requests import RequestState
from .unit_selection import Decode, Part, next_decode
from .units import UnitState

STEPS_IN_FLIGHT = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one step: new tokens and failures of requests that still run."""

    unit: UnitState
    tokens: list[tuple[RequestState, int]]
    failed: list[tuple[RequestState, ErrorFacts]]
    was_prefill: bool
    exchanged: bool
    """Rows from other units joined it."""


class Stepper:
    """The units compute holds, in the order it was told. Numbers of steps and units strictly grow."""

    def __init__(self, first_number: int, prediction_requests: PredictionRequests | None = None) -> None:
        self._prediction_requests = prediction_requests or PredictionRequests()
        self.units: dict[int, UnitState] = {}
        self.number = first_number
        """Of the newest step or unit."""
        self._in_flight: dict[int, UnitState] = {}
        self._exchanged: set[int] = set()
        """Steps in flight that rows from other units joined."""
        self._holders: dict[int, UnitState] = {}

    @property
    def steps_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def full(self) -> bool:
        """Compute has a step to run and one to go on with."""
        return len(self._in_flight) >= STEPS_IN_FLIGHT

    @property
    def prefilling(self) -> bool:
        return any(unit.prefilling for unit in self._in_flight.values())

    @property
    def alive(self) -> list[UnitState]:
        """Units with rows, but for rows that are on their way to another unit."""
        return [unit for unit in self.units.values() if unit.rows and not unit.underway]

    def may_exchange(self, facts: ComputeInfo) -> bool:
        """Whether there are several units, with nothing on the way, whose rows may change places."""
        settled = not any(unit.prefilling or unit.underway for unit in self.units.values())
        return facts.joining and settled and len(self.alive) > 1

    @property
    def running_suspect(self) -> bool:
        """Whether a request that compute died on is being tried alone."""
        return any(request.deaths for unit in self._in_flight.values() for request in unit.rows.values())

    @property
    def row_count(self) -> int:
        return sum(len(unit.rows) for unit in self.units.values())

    def prefill(self, requests: list[RequestState]) -> list[SchedulerAction]:
        """Start a new unit with these rows."""
        unit = self._new_unit(requests)
        unit.prefilling = True
        rows = [request.row() for request in requests]
        return self._run(unit, self._prediction_requests.prefill(self.number + 1, rows), admit=rows)

    def choose(self, keep: int, facts: ComputeInfo) -> tuple[Decode | None, list[SchedulerAction]]:
        """The next step of a unit that is not in flight, None when all had better wait; what is to be done before."""
        actions: list[SchedulerAction] = []
        settled = not any(unit.underway for unit in self.units.values())
        while isinstance(choice := next_decode(self.alive, facts, keep, settled), Part):
            actions.append(self._move(choice.unit, choice.rows)[1])
        return choice, actions

    def decode(self, choice: Decode, predict: bool) -> list[SchedulerAction]:
        """Run what was chosen, with the rows that are bound for it; `predict`: with a forecast ahead of it."""
        unit = choice.unit
        arrivals = [other for other in self.units.values() if other.rows and other.bound_for is unit]
        actions: list[SchedulerAction] = []
        joined: list[int] = []
        for other in arrivals + choice.joins:
            clean, parting = self._without_leaving(other)
            actions += parting
            joined.append(clean.number)
            self._absorb(unit, clean)
        dropped = list(unit.leaving)
        unit.leaving.clear()
        advice = self._prediction_requests.decode(self.number + 1, unit.rows.values())
        actions += self._run(unit, advice, drop=dropped, join=joined, predict=predict)
        if arrivals:
            self._exchanged.add(self.number)
        return actions

    def exchange(self, moves: dict[int, UnitState]) -> list[SchedulerAction]:
        """Rows (by number) leave their units, which are idle, and join the named ones at their next steps."""
        actions: list[SchedulerAction] = []
        for unit in self.alive:
            for target in dict.fromkeys(moves[row] for row in unit.rows if row in moves):
                part, action = self._move(unit, [row for row in unit.rows if moves.get(row) is target])
                part.bound_for = target
                actions.append(action)
        return actions

    def leave(self, request: RequestState) -> None:
        """The request ended; its row leaves compute before the unit's next step."""
        if (unit := self._holders.pop(request.number, None)) is not None:
            unit.leave(request)

    def forget_empty(self) -> list[SchedulerAction]:
        """Units of which all rows ended are dropped without another step."""
        empty = [unit for unit in self.units.values() if not unit.rows and unit.step is None]
        return [self._forget(unit) for unit in empty]

    def finish(self, stepped: Stepped) -> Outcome | None:
        """What a step brought; None when it is not one of ours in flight (an earlier compute's)."""
        unit = self._in_flight.pop(stepped.number, None)
        if unit is None:
            return None
        was_prefill, unit.step, unit.prefilling = unit.prefilling, None, False
        exchanged = stepped.number in self._exchanged
        self._exchanged.discard(stepped.number)
        live = unit.rows
        tokens = [(live[row], token) for row, token in zip(stepped.rows, stepped.tokens, strict=True) if row in live]
        failed = [(live[row], error) for row, error in stepped.failed.items() if row in live]
        for row in stepped.failed:
            self._evict(unit, row)
        return Outcome(unit, tokens, failed, was_prefill, exchanged)

    def lose_all(self) -> tuple[list[RequestState], list[RequestState]]:
        """Compute died. Its live requests, and those of them that it was running right then."""
        suspects = [request for unit in self._in_flight.values() for request in unit.rows.values()]
        lost = [request for unit in self.units.values() for request in unit.rows.values()]
        self.units.clear()
        self._in_flight.clear()
        self._exchanged.clear()
        self._holders.clear()
        return lost, suspects

    def _run(self, unit: UnitState, advice: PredictStep, predict: bool = True, **what: Any) -> list[SchedulerAction]:
        self.number = advice.step
        unit.step = unit.last_step = self.number
        self._in_flight[self.number] = unit
        order = RunStep(number=self.number, unit=unit.number, predict=predict, **what)
        return [ToPredictor(advice), ToCompute(order)] if predict else [ToCompute(order)]

    def _without_leaving(self, unit: UnitState) -> tuple[UnitState, list[SchedulerAction]]:
        """`drop` speaks of the unit that runs, so a unit that joins it must be rid of ended rows before."""
        if not unit.leaving:
            return unit, []
        rest, parting = self._move(unit, list(unit.rows))
        return rest, [parting, self._forget(unit)]

    def _move(self, unit: UnitState, rows: list[int]) -> tuple[UnitState, SchedulerAction]:
        part = self._new_unit([unit.rows.pop(number) for number in rows])
        part.last_step = unit.last_step
        return part, ToCompute(Split(unit=unit.number, rows=rows, into=part.number))

    def _absorb(self, unit: UnitState, other: UnitState) -> None:
        del self.units[other.number]
        unit.rows.update(other.rows)
        self._holders.update(dict.fromkeys(other.rows, unit))
        other.rows.clear()  # so that nobody stays bound for it

    def _new_unit(self, requests: list[RequestState]) -> UnitState:
        self.number += 1
        unit = UnitState.of(self.number, requests)
        self.units[unit.number] = unit
        self._holders.update(dict.fromkeys(unit.rows, unit))
        return unit

    def _forget(self, unit: UnitState) -> SchedulerAction:
        del self.units[unit.number]
        return ToCompute(DropUnit(unit.number))

    def _evict(self, unit: UnitState, number: int) -> None:
        """A failed row has left the unit by itself."""
        unit.rows.pop(number, None)
        unit.leaving.pop(number, None)
        self._holders.pop(number, None)
