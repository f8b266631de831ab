"""What a timed replay foretells: plans of a forecaster or of the recording, and hints of the recording."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ...ipc.messages import StepPrediction, StepRouting
from ...workers.predictor.base.forecaster import Forecaster, scores
from ...workers.traces.step_log import StepLog
from .steps import Program

LIKELY = 127
"""Scores above this say that an expert is more likely to be used than not."""


class Hinting(Protocol):
    """Names the experts of a layer when the layer before it begins."""

    def scores(self, step: int, layer: int) -> bytes | None:
        """uint8 [experts] as in `Hint`; None: no hint."""
        ...


class Planning(Protocol):
    """Makes the plans."""

    def begin(self, step: int) -> list[tuple[int, StepPrediction]]:
        """Step `step` begins: plans that are sent because of it, or meanwhile, and after how many nanoseconds."""
        ...

    def learn(self, used: StepRouting) -> None:
        """A step is over."""
        ...


class ForecastPlans:
    """Each step is forecast when it begins, from what is known by then."""

    def __init__(self, program: Program, forecaster: Forecaster, forecast_ns: int = 0) -> None:
        """`forecast_ns`: how long a forecast takes."""
        self._program, self._forecaster, self._forecast_ns = program, forecaster, forecast_ns

    def begin(self, step: int) -> list[tuple[int, StepPrediction]]:
        plan = StepPrediction(step, scores(self._forecaster.forecast(self._program.forecast(step))))
        return [(self._forecast_ns, plan)]

    def learn(self, used: StepRouting) -> None:
        self._forecaster.learn(used)


class RecordedPlans:
    """The plans that the engine's own predictor sent, as long after the begin of a step as they were sent then."""

    def __init__(self, log: StepLog, places: np.ndarray) -> None:
        """`places` [steps]: where the replay's steps are in the log."""
        self._due: list[list[tuple[int, StepPrediction]]] = [[] for _ in places]
        started_ns = log.started_ns[places]
        for step in np.flatnonzero(log.planned[places]).tolist():
            sent_ns = int(log.planned_ns[places[step]])
            during = max(int(np.searchsorted(started_ns, sent_ns, side="right")) - 1, 0)
            delay_ns = max(sent_ns - int(started_ns[during]), 0)
            self._due[during].append((delay_ns, StepPrediction(step, log.plans[places[step]].tobytes())))

    def begin(self, step: int) -> list[tuple[int, StepPrediction]]:
        return self._due[step]

    def learn(self, used: StepRouting) -> None:
        """What was planned was planned."""


class RecordedHints:
    """The hints that compute gave."""

    def __init__(self, log: StepLog, places: np.ndarray) -> None:
        self._hints, self._hinted = log.hints[places], log.hinted[places]

    def of(self, step: int) -> np.ndarray:
        """The hinted keys of a step, ascending: those more likely than not."""
        return np.flatnonzero(self._hints[step] > LIKELY)

    def scores(self, step: int, layer: int) -> bytes | None:
        scores = self._hints[step, layer]
        return scores.tobytes() if self._hinted[step] and scores.any() else None
