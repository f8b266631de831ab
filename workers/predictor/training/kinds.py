"""The kinds of predictors that can be trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ...traces.trace import Trace
from ..base.forecaster import Forecaster
from ..judging.report import Report
from .loop import Effort, ReportProgress
from .paper import TrainedPaper, train_paper
from .path import TrainedPath, train_path


class Trained(Protocol):
    """A predictor that was just trained."""

    @property
    def adapts(self) -> bool:
        """It can go on learning."""
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
    return TrainedPath(train_path(trace, effort, tell))


def _paper(trace: Trace, effort: Effort, tell: ReportProgress) -> Trained:
    return TrainedPaper(train_paper(trace, effort, tell))


TRAINERS: dict[str, Callable[[Trace, Effort, ReportProgress], Trained]] = {"path": _path, "paper": _paper}
