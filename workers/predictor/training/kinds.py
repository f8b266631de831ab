"""Registry of the kinds of predictors that can be trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ...traces.trace import Trace
from ..base.forecaster import Forecaster
from ..base.training_end import TrainingEnd
from ..judging.report import Report
from .loop import Effort, ReportProgress
from .path import train_path
from .t5 import train_t5


class Trained(Protocol):
    """A predictor that was just trained."""

    @property
    def adapts(self) -> bool:
        """The predictor can go on learning."""
        ...

    @property
    def end(self) -> TrainingEnd | None:
        """The end of its training."""
        ...

    def forecaster(self, vocabulary: list[str] | None, adapts: bool) -> Forecaster:
        """Return a fresh forecaster; `vocabulary` has the strings of the judging trace's token ids.

        `adapts`: it goes on learning from the trace that it is judged by, if it can.
        """
        ...

    def save(self, file: Path) -> None:
        """Write the predictor, before it is judged."""
        ...

    def write(self, file: Path, figures: Report) -> Report:
        """Write the predictor with its figures; return the figures with the size of the file."""
        ...


TRAINERS: dict[str, Callable[[Trace, Effort, ReportProgress], Trained]] = {"path": train_path, "paper": train_t5}
