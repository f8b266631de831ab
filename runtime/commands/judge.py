"""`expertflow judge`: the accuracy of a stored predictor on a trace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import tyro
from msgspec import Meta

from ...configs.checks import Seed
from ...ipc.messages import Progress
from ...workers.traces.trace import Trace
from ..command_line.base import DONE, Command
from ..monitor.predictor_tables import report_table
from ..monitor.progress import ProgressView
from ..monitor.tables import result_console
from .train import PROMPTS, align_traces, check_writable, read_decoded, write_report

if TYPE_CHECKING:
    from ...workers.predictor.judging.report import Report


@dataclass(frozen=True, kw_only=True)
class Judge(Command):
    """Judge a predictor that `expertflow train` stored on a trace of the same model, with the same figures.

    The sequences that it learned from say little: give another trace, or --held-out with the share and the seed of
    its training.
    """

    predictor: tyro.conf.Positional[Path]
    """File that `expertflow train --out` wrote, of kind path or paper."""
    trace: tyro.conf.Positional[Path]
    """Folder that `expertflow trace` wrote, or an npz file."""
    learned: Annotated[Path | None, tyro.conf.arg(metavar="TRACE")] = None
    """Trace for the baselines beside the predictor (token table and popularity); without it, or --held-out, they count
    while they are judged."""
    held_out: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Judge on this share of the sequences: those that training with this share and seed held out."""
    seed: Seed = 0
    """Seed of the choice of held-out sequences."""
    tokens: Annotated[int, Meta(ge=0)] = 30_000
    """Judge on the first sequences, so many tokens at most; 0: on all."""
    report: Path | None = None
    """File for the figures, as JSON."""

    def run(self) -> int:
        check_writable(self.report)
        with ProgressView() as view:
            view(Progress("judge", "reading", 0, 1))
            kind, figures = self._judge(view)
        result_console().print(report_table(kind, figures))
        write_report(figures, self.report)
        return DONE

    def _judge(self, view: ProgressView) -> tuple[str, Report]:
        from ...workers.predictor.base.predictor_file import stored_kind
        from ...workers.predictor.judging.loading import load_predictor
        from ...workers.predictor.judging.report import compare

        learned, judged = self._traces(stored_kind(self.predictor))
        stored = load_predictor(self.predictor, judged)
        view(Progress("judge", "reading", 1, 1))
        view(Progress("judge", "judging", 0, 1))
        figures = compare(stored.make, learned, judged, PROMPTS[stored.kind], stored.adapts, self.tokens)
        view(Progress("judge", "judging", 1, 1))
        return stored.kind, msgspec.structs.replace(figures, file_bytes=self.predictor.stat().st_size)

    def _traces(self, kind: str) -> tuple[Trace | None, Trace]:
        """Return the trace for the baselines (None: they count while judged) and the trace to judge on."""
        judged, learned = read_decoded(self.trace, kind), None
        if self.held_out:
            learned, judged = judged.split(self.held_out, self.seed)
        if self.learned is not None:
            learned = read_decoded(self.learned, kind)
        return learned, judged if learned is None else align_traces(judged, learned, self.trace)
