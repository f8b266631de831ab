"""The figures of a predictor as tables."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ...configs.sizes import format_size
from ...workers.predictor.judging.figures import Figures
from ...workers.predictor.judging.report import TIMED_ROWS, Report
from .tables import UNKNOWN, facts_table, plain_table


def report_table(kind: str, report: Report, training: str = "") -> Group:
    """Return the predictor beside simpler ones, and the paper's batch accuracy. `training`: its outcome in words."""
    facts = {"training": training} if training else {}
    facts |= {
        "judged by": _judged_words(report),
        "token table, popularity": _learned_words(report),
        f"CPU time for {TIMED_ROWS} rows in decode": f"{report.step_ms:.1f} ms",
    }
    if report.file_bytes:
        facts["file"] = format_size(report.file_bytes)
    return Group(_recalls(kind, report), Text(), _batches(kind, report), Text(), facts_table(facts))


def _judged_words(report: Report) -> str:
    if report.tokens < report.tokens_given:
        return f"{report.tokens:,} of {report.tokens_given:,} tokens, the first sequences (--tokens 0: all)"
    return f"{report.decode.tokens:,} tokens"


def _learned_words(report: Report) -> str:
    return f"made from {report.learned_from:,} tokens" if report.learned_from else "counted while judged"


def _recalls(kind: str, report: Report) -> Table:
    table = plain_table("predictor", "recall@k", "recall@2k", "precision at p ≥ 0.5", "calibration error")
    lines = {f"{kind}, decode": report.decode}
    if report.still != report.decode:
        lines[f"{kind}, decode, not adapting"] = report.still
    lines[f"{kind}, prefill"] = report.prefill
    for name, figures in (lines | _simpler(report)).items():
        table.add_row(name, *(f"{value:.3f}" for value in (figures.recall, figures.recall_double)), *_chances(figures))
    return table


def _chances(figures: Figures) -> tuple[str, str]:
    return f"{figures.precision:.3f}", f"{figures.calibration_error:.4f}"


def _batches(kind: str, report: Report) -> Table:
    sizes = [batch.tokens for batch in report.decode.batches]
    table = plain_table("B_acc (forecast/used)", *(f"batch {size}" for size in sizes))
    for name, figures in ({f"{kind}, decode": report.decode} | _simpler(report)).items():
        table.add_row(name, *(_batch(one.accuracy, one.size_ratio) for one in figures.batches))
        doubled = (_batch(one.accuracy_double, one.size_ratio_double) for one in figures.batches)
        table.add_row(f"{name}, 2k each", *doubled)
    return table


def _batch(accuracy: float | None, size_ratio: float | None) -> str:
    return UNKNOWN if accuracy is None or size_ratio is None else f"{accuracy:.3f} ({size_ratio:.2f})"


def _simpler(report: Report) -> dict[str, Figures]:
    return {"token table": report.table, "previous token": report.previous, "popularity": report.popularity}
