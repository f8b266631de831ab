"""What the predictor's core decides: actions for its shell. What it hears are the messages themselves."""

from __future__ import annotations

from dataclasses import dataclass

from ...ipc.messages import Forecast, Used


@dataclass(frozen=True)
class Learn:
    """Take in this routing."""

    used: Used


@dataclass(frozen=True)
class Predict:
    """Forecast this step and tell the loader."""

    coming: Forecast


Event = Forecast | Used
Action = Learn | Predict
