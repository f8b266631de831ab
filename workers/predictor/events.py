"""What the predictor's core decides: actions for its shell. What it hears are the messages themselves."""

from __future__ import annotations

from dataclasses import dataclass

from ...ipc.messages import PredictRows, PredictStep, StepRouting


@dataclass(frozen=True)
class Learn:
    """Take in this routing."""

    used: StepRouting


@dataclass(frozen=True)
class RunStepPrediction:
    """Forecast this step and tell the loader."""

    coming: PredictStep


@dataclass(frozen=True)
class RunRowPrediction:
    """PredictRows each of these rows and tell the scheduler."""

    asked: PredictRows


PredictorEvent = PredictStep | PredictRows | StepRouting
PredictorAction = Learn | RunStepPrediction | RunRowPrediction
