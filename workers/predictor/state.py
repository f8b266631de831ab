"""Decides when to predict: once the routing of the rows' previous tokens is known, and before the step has run.

Requests come from the scheduler and the routing of finished steps from the loader, over two links. The request for
step n may overtake the routing of the step before. A predictor that uses the routing of earlier tokens waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ipc.messages import PredictRows, PredictStep, StepRouting
from .base.lru import LruDict

REMEMBERED_ROWS = 4096


@dataclass(frozen=True)
class Learn:
    """Action: learn from this routing."""

    routing: StepRouting


@dataclass(frozen=True)
class RunStepPrediction:
    """Action: predict this step and send the prediction to the loader."""

    request: PredictStep


@dataclass(frozen=True)
class RunRowPrediction:
    """Action: predict each of these rows and send the predictions to the scheduler."""

    request: PredictRows


PredictorEvent = PredictStep | PredictRows | StepRouting
PredictorAction = Learn | RunStepPrediction | RunRowPrediction


class PredictorState:
    """Pure core: `handle(event)` returns the actions, in this order.

    Compute runs steps in the order of their numbers (R7), so routing of step n means that no older routing will come.
    A request that waits is dropped when its own step has run or when a newer request has a row of it.
    """

    def __init__(self, waits: bool) -> None:
        """`waits`: hold a request back until the routing of its rows' previous step is known."""
        self._waits = waits
        self._requested_steps: LruDict[int] = LruDict(REMEMBERED_ROWS)
        """Row → newest step that was requested for it."""
        self._held: dict[int, tuple[PredictStep, int]] = {}
        """Step → its request, and the step whose routing the request waits for."""
        self._held_rows: tuple[PredictRows, int] | None = None
        """The scheduler's request for single rows, and the step whose routing the request waits for."""
        self._newest_routed = -1
        """Newest step whose routing is known."""
        self.dropped = 0
        """Requests that came too late to be of use."""

    @property
    def waiting(self) -> int:
        """Requests held back."""
        return len(self._held)

    def handle(self, event: PredictorEvent) -> list[PredictorAction]:
        """Return the actions that the event calls for."""
        match event:
            case PredictStep():
                return self._on_predict_step(event)
            case PredictRows():
                return self._on_predict_rows(event)
            case StepRouting():
                return self._on_step_routing(event)

    def still_useful(self, request: PredictStep) -> bool:
        """Return True if the step has not run yet; if it has, count the request as dropped."""
        late = request.step <= self._newest_routed
        self.dropped += late
        return not late

    def _on_predict_step(self, request: PredictStep) -> list[PredictorAction]:
        if not self.still_useful(request):
            return []
        self._drop([step for step, (held, _) in self._held.items() if not set(held.rows).isdisjoint(request.rows)])
        awaited = self._awaited_step(request.rows)
        self._remember(request)
        if awaited <= self._newest_routed:
            return [RunStepPrediction(request)]
        self._held[request.step] = request, awaited
        return []

    def _on_predict_rows(self, request: PredictRows) -> list[PredictorAction]:
        """Replace the request that waits: the scheduler wants an answer to the newest one only."""
        awaited = self._awaited_step(request.rows)
        self._held_rows = None if awaited <= self._newest_routed else (request, awaited)
        return [RunRowPrediction(request)] if self._held_rows is None else []

    def _awaited_step(self, rows: list[int]) -> int:
        """Return the step whose routing must be known before these rows are predicted; -1: none."""
        steps = (self._requested_steps.get(row) for row in rows) if self._waits else ()
        return max((step for step in steps if step is not None), default=-1)

    def _on_step_routing(self, routing: StepRouting) -> list[PredictorAction]:
        self._newest_routed = max(self._newest_routed, routing.step)
        self._drop([step for step in self._held if step <= self._newest_routed])
        ready = [step for step, (_, awaited) in self._held.items() if awaited <= self._newest_routed]
        predictions = [RunStepPrediction(self._held.pop(step)[0]) for step in ready]
        return [Learn(routing), *self._release_rows(), *predictions]

    def _release_rows(self) -> list[PredictorAction]:
        if self._held_rows is None or self._held_rows[1] > self._newest_routed:
            return []
        request, self._held_rows = self._held_rows[0], None
        return [RunRowPrediction(request)]

    def _drop(self, steps: list[int]) -> None:
        for step in steps:
            del self._held[step]
        self.dropped += len(steps)

    def _remember(self, request: PredictStep) -> None:
        for row in dict.fromkeys(request.rows):
            self._requested_steps[row] = request.step
