"""What the predictor's core decides: actions for its shell. What it hears are the messages themselves."""

from __future__ import annotations

from dataclasses import dataclass

from ...ipc.messages import Forecast, Foresee, Used


@dataclass(frozen=True)
class Learn:
    """Take in this routing."""

    used: Used


@dataclass(frozen=True)
class Predict:
    """Forecast this step and tell the loader."""

    coming: Forecast


@dataclass(frozen=True)
class Foretell:
    """Foresee each of these rows and tell the scheduler."""

    asked: Foresee


Event = Forecast | Foresee | Used
Action = Learn | Predict | Foretell
