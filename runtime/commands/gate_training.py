"""`expertflow train --kind gates`: gates learned from the hidden states of a trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from ...errors import UsageError
from ...ipc.messages import Progress
from ..command_line.base import DONE
from ..monitor.progress import ProgressView
from ..monitor.tables import plain_table, result_console

if TYPE_CHECKING:
    from ...workers.gates.training import GateOptions, GateReport


def run_gate_training(trace: Path, out: Path | None, options: GateOptions, threads: int) -> int:
    """Train, write `out` if there is one, and show the recall on held-out sequences. Raises UsageError."""
    if not trace.is_dir():
        what = "gates are trained on hidden states, which only the folder of a trace has"
        raise UsageError(what, str(trace), "Trace with --hidden 1, and give that folder")
    import torch

    from ...workers.gates.training import train_gates
    from ...workers.predictor.base.training_end import TrainingEnd

    torch.set_num_threads(threads)
    with ProgressView() as view:
        view(Progress("train", "training gates", 0, 1))
        report = train_gates(trace, out, options, lambda *news: view(Progress("train", *news)))
    end = TrainingEnd(reason=report.ended_by, epochs=report.epochs, steps=0)
    result_console().print(f"training: {end.words(options.epochs, options.minutes)}", soft_wrap=True)
    result_console().print(recall_table(report))
    return DONE


def recall_table(report: GateReport) -> Table:
    """By MoE layer, and the mean."""
    title = f"recall of {report.held_out_tokens:,} held-out tokens; {report.tokens:,} learned from"
    table = plain_table("MoE layer", "recall@k", "recall@2k")
    table.title = title
    for layer, shares in enumerate(zip(report.recall_at_k, report.recall_at_2k, strict=True), start=1):
        table.add_row(str(layer), *(f"{share:.3f}" for share in shares))
    table.add_row("mean", f"{report.recall_at_k.mean():.3f}", f"{report.recall_at_2k.mean():.3f}")
    return table
