"""When to forecast: not before the routing of the rows' previous tokens is known, and never too late.

Forecasts come from the scheduler and the routing of finished steps from the loader, over two links, so the forecast of
step n may overtake the routing of the step before. A predictor that uses the routing of earlier tokens waits for it.
"""

from __future__ import annotations

from ...ipc.messages import PredictRows, PredictStep, StepRouting
from .base.lru import LruDict
from .events import Learn, PredictorAction, PredictorEvent, RunRowPrediction, RunStepPrediction

REMEMBERED_ROWS = 4096


class PredictorState:
    """Pure core: `handle(event)` returns what to do, in this order.

    Compute runs steps in the order of their numbers (R7), so routing of step n says that nothing older will come.
    A forecast that waits is dropped when its own step has run or when a newer one has a row of it.
    """

    def __init__(self, waits: bool) -> None:
        """`waits`: hold a forecast back until the routing of its rows' previous step is known."""
        self._waits = waits
        self._asked: LruDict[int] = LruDict(REMEMBERED_ROWS)
        """Row → newest step it was forecast for."""
        self._held: dict[int, tuple[PredictStep, int]] = {}
        """Step → its forecast, and the step whose routing it waits for."""
        self._question: tuple[PredictRows, int] | None = None
        """The scheduler's question about single rows, and the step whose routing it waits for."""
        self._ran = -1
        """Newest step whose routing is known."""
        self.dropped = 0
        """Forecasts that came too late to be of use."""

    @property
    def waiting(self) -> int:
        """Forecasts held back."""
        return len(self._held)

    def handle(self, event: PredictorEvent) -> list[PredictorAction]:
        match event:
            case PredictStep():
                return self._on_predict_step(event)
            case PredictRows():
                return self._on_predict_rows(event)
            case StepRouting():
                return self._on_step_routing(event)

    def still_useful(self, coming: PredictStep) -> bool:
        """Whether its step has not run yet; if it has, the forecast counts as dropped."""
        late = coming.step <= self._ran
        self.dropped += late
        return not late

    def _on_predict_step(self, coming: PredictStep) -> list[PredictorAction]:
        if not self.still_useful(coming):
            return []
        self._drop([step for step, (held, _) in self._held.items() if not set(held.rows).isdisjoint(coming.rows)])
        awaited = self._awaited(coming.rows)
        self._remember(coming)
        if awaited <= self._ran:
            return [RunStepPrediction(coming)]
        self._held[coming.step] = coming, awaited
        return []

    def _on_predict_rows(self, asked: PredictRows) -> list[PredictorAction]:
        """Of two questions that wait, the scheduler wants an answer to the newer one only."""
        awaited = self._awaited(asked.rows)
        self._question = None if awaited <= self._ran else (asked, awaited)
        return [RunRowPrediction(asked)] if self._question is None else []

    def _awaited(self, rows: list[int]) -> int:
        """The step whose routing must be known before these rows are forecast."""
        asked = (self._asked.get(row) for row in rows) if self._waits else ()
        return max((step for step in asked if step is not None), default=-1)

    def _on_step_routing(self, used: StepRouting) -> list[PredictorAction]:
        self._ran = max(self._ran, used.step)
        self._drop([step for step in self._held if step <= self._ran])
        ready = [step for step, (_, awaited) in self._held.items() if awaited <= self._ran]
        return [Learn(used), *self._answer(), *(RunStepPrediction(self._held.pop(step)[0]) for step in ready)]

    def _answer(self) -> list[PredictorAction]:
        if self._question is None or self._question[1] > self._ran:
            return []
        asked, self._question = self._question[0], None
        return [RunRowPrediction(asked)]

    def _drop(self, steps: list[int]) -> None:
        for step in steps:
            del self._held[step]
        self.dropped += len(steps)

    def _remember(self, coming: PredictStep) -> None:
        for row in dict.fromkeys(coming.rows):
            self._asked[row] = coming.step
