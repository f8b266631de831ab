"""The picture of the study: accuracy against what a token's experts compute, and against what a step reads."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from expertflow.benchmarks.plots.style import OTHERS, make_panels, save
from expertflow.errors import UsageError
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from ..resumable import Row

MARKERS = ("o", "s", "^", "v", "D", "P")
_STEP_ROWS = "8"


def draw_picture(rows: list[Row], file: Path) -> None:
    """Draw one mark a kind, with the least and greatest seed. Raises UsageError without quality and routing."""
    complete = [row for row in rows if row.get("routing") and row.get("quality")]
    kinds = {kind: [row for row in complete if row["kind"] == kind] for kind in dict.fromkeys(map(_kind, complete))}
    if not kinds:
        raise UsageError("there are no kinds with quality and routing to draw", "picture", "Run all parts first")
    figure, panels = make_panels(2, width=4.0)
    for place, (kind, seeds) in enumerate(kinds.items()):
        accuracies = [seed["quality"]["mean"] for seed in seeds]
        look = {"color": OTHERS[place], "marker": MARKERS[place], "label": kind}
        _mark(panels[0], mean(seed["routing"]["expert_flops_a_token"] for seed in seeds) / 1e3, accuracies, look)
        read_bytes = mean(seed["routing"]["expert_bytes_a_step"][_STEP_ROWS] for seed in seeds)
        _mark(panels[1], read_bytes / 1e6, accuracies, look)
    panels[0].set(xlabel="experts: kFLOP a token", ylabel="accuracy, mean of three forms", xscale="log")
    panels[1].set(xlabel=f"experts: MB read by a step of {_STEP_ROWS} rows", xscale="log")
    panels[1].legend(fontsize=8)
    for panel in panels:
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_formatter(NullFormatter())
    save(figure, file)


def _kind(row: Row) -> str:
    return row["kind"]


def _mark(panel: Axes, cost: float, accuracies: list[float], look: dict[str, Any]) -> None:
    middle = mean(accuracies)
    spread = [[middle - min(accuracies)], [max(accuracies) - middle]]
    panel.errorbar([cost], [middle], yerr=spread, linestyle="none", capsize=3, **look)
