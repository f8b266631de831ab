"""Predictions and hints of a timed replay: those of a forecaster, or the recorded ones."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ...ipc.messages import StepPrediction, StepRouting
from ...workers.predictor.base.forecaster import Forecaster, scores
from ...workers.traces.step_log import StepLog
from .steps import Program

LIKELY = 127
"""Scores above this mean that an expert is more likely used than not."""


class LayerHints(Protocol):
    """Hints for the experts of a layer, made when the layer before it begins."""

    def scores(self, step: int, layer: int) -> bytes | None:
        """Return uint8 [experts] as in `Hint`; None: no hint."""
        ...


class PredictionSource(Protocol):
    """Predictions of whole steps."""

    def begin(self, step: int) -> list[tuple[int, StepPrediction]]:
        """Return the predictions that are sent during `step`, each with its delay in ns after the begin of the step."""
        ...

    def learn(self, routing: StepRouting) -> None:
        """Learn from the routing of a finished step."""
        ...


class ForecasterPredictions:
    """Predictions by a forecaster, made when each step begins, from the routing of all earlier steps."""

    def __init__(self, program: Program, forecaster: Forecaster, forecast_ns: int = 0) -> None:
        """Predict the steps of `program`. `forecast_ns`: time that a prediction takes."""
        self._program, self._forecaster, self._forecast_ns = program, forecaster, forecast_ns

    def begin(self, step: int) -> list[tuple[int, StepPrediction]]:
        probabilities = self._forecaster.forecast(self._program.prediction_request(step))
        return [(self._forecast_ns, StepPrediction(step, scores(probabilities)))]

    def learn(self, routing: StepRouting) -> None:
        self._forecaster.learn(routing)


class RecordedPredictions:
    """Predictions that the engine's own predictor sent, each with its recorded delay after the begin of a step."""

    def __init__(self, log: StepLog, log_indices: np.ndarray) -> None:
        """Read the predictions in `log`. `log_indices`: int64 [steps], indices of the replay's steps in the log."""
        self._due: list[list[tuple[int, StepPrediction]]] = [[] for _ in log_indices]
        started_ns = log.started_ns[log_indices]
        for step in np.flatnonzero(log.planned[log_indices]).tolist():
            sent_ns = int(log.planned_ns[log_indices[step]])
            during = max(int(np.searchsorted(started_ns, sent_ns, side="right")) - 1, 0)
            delay_ns = max(sent_ns - int(started_ns[during]), 0)
            self._due[during].append((delay_ns, StepPrediction(step, log.plans[log_indices[step]].tobytes())))

    def begin(self, step: int) -> list[tuple[int, StepPrediction]]:
        return self._due[step]

    def learn(self, routing: StepRouting) -> None:
        """Ignore the routing: the predictions are fixed."""


class RecordedHints:
    """Hints that compute gave in the recorded run."""

    def __init__(self, log: StepLog, log_indices: np.ndarray) -> None:
        self._hints, self._hinted = log.hints[log_indices], log.hinted[log_indices]

    def of(self, step: int) -> np.ndarray:
        """Return int64 [n]: the hinted keys of a step, ascending: those more likely used than not."""
        return np.flatnonzero(self._hints[step] > LIKELY)

    def scores(self, step: int, layer: int) -> bytes | None:
        scores = self._hints[step, layer]
        return scores.tobytes() if self._hinted[step] and scores.any() else None
