"""The kinds of predictors that can be trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ...traces.trace import Trace
from ..base.forecaster import Forecaster
from ..base.training_end import TrainingEnd
from ..judging.report import Report
from .loop import Effort, ReportProgress
from .paper import TrainedPaper, learn_paper
from .path import TrainedPath, learn_path


class Trained(Protocol):
    """A predictor that was just trained."""

    @property
    def adapts(self) -> bool:
        """It can go on learning."""
        ...

    @property
    def end(self) -> TrainingEnd | None:
        """How its training ended."""
        ...

    def forecaster(self, vocabulary: list[str] | None, adapts: bool) -> Forecaster:
        """Ready to judge; `vocabulary` are the strings of the judging trace's token ids.

        `adapts`: it goes on learning from what it is judged by, if it can.
        """
        ...

    def save(self, file: Path) -> None:
        """Writes it before it is judged."""
        ...

    def write(self, file: Path, figures: Report) -> Report:
        """Writes it with its figures; returns them with the size of the file."""
        ...


def _path(trace: Trace, effort: Effort, tell: ReportProgress) -> Trained:
    file, end = learn_path(trace, effort, tell)
    return TrainedPath(file, end=end)


def _paper(trace: Trace, effort: Effort, tell: ReportProgress) -> Trained:
    file, end = learn_paper(trace, effort, tell)
    return TrainedPaper(file, end=end)


TRAINERS: dict[str, Callable[[Trace, Effort, ReportProgress], Trained]] = {"path": _path, "paper": _paper}
