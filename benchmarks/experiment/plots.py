"""Results as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expertflow.runtime.replay.experiment import BOUNDS

from .figures import Figures

OVER_SLOTS = {"tokens_per_s": "tokens/s", "hit_ratio": "hit ratio", "pss_mb": "PSS of all processes, MB"}
BESIDE = {
    "tokens_per_s": "tokens/s",
    "hit_ratio": "hit ratio",
    "loads_a_token": "loads a token",
    "activated_a_token": "activated experts a token",
    "stall_share": "stall, share of the time",
    "accuracy": "accuracy of forecasts",
}


def draw_all(rows: Sequence[Figures], folder: Path, setting: str) -> None:
    """Pictures of what was run: slots.png, systems.png, ablation.png."""
    if not rows:
        return
    slots, batch = _common_cell(rows)
    there = [row for row in rows if (row["slots"], row["batch"]) == (slots, batch)]
    where = f"{slots} of the experts, batch {batch}"
    if main := [row for row in rows if row["group"] == "main"]:
        _over_slots(main, folder / "slots.png", setting)
    if systems := [row for row in there if row["group"] != "ablation"]:
        _beside(systems, folder / "systems.png", where)
    if ablation := [row for row in there if row["group"] == "ablation"]:
        _beside(ablation, folder / "ablation.png", where)


def _common_cell(rows: Sequence[Figures]) -> tuple[str, int]:
    """Where most systems were run."""
    cells = [(row["slots"], row["batch"]) for row in rows]
    return max(dict.fromkeys(cells), key=cells.count)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _over_slots(rows: Sequence[Figures], file: Path, title: str) -> None:
    pyplot, batches = _pyplot(), list(dict.fromkeys(row["batch"] for row in rows))
    size = (4.5 * len(batches) + 1, 2.6 * len(OVER_SLOTS))
    figure, axes = pyplot.subplots(len(OVER_SLOTS), len(batches), figsize=size, layout="constrained", squeeze=False)
    for line, (column, label) in zip(axes, OVER_SLOTS.items(), strict=True):
        for panel, batch in zip(line, batches, strict=True):
            _curves(panel, [row for row in rows if row["batch"] == batch], column)
            panel.set(xlabel="slots, % of all experts", ylabel=label, title=f"batch {batch}")
    axes[0][0].legend(fontsize=7)
    figure.suptitle(title, fontsize=8)
    _write(pyplot, figure, file)


def _curves(panel: Any, rows: Sequence[Figures], column: str) -> None:
    for system in dict.fromkeys(row["system"] for row in rows):
        points = sorted((float(row["slots"].rstrip("%")), row[column]) for row in rows if row["system"] == system)
        panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=system)
    panel.set_ylim(bottom=0)


def _beside(rows: Sequence[Figures], file: Path, title: str) -> None:
    pyplot = _pyplot()
    size = (12, 2 * (0.28 * len(rows) + 0.9))
    figure, axes = pyplot.subplots(2, len(BESIDE) // 2, figsize=size, layout="constrained", sharey=True)
    names = [row["system"] for row in rows]
    for panel, (column, label) in zip(axes.flat, BESIDE.items(), strict=True):
        bars = panel.barh(names, [row[column] or 0.0 for row in rows], color="tab:blue")
        panel.bar_label(bars, ["–" if row[column] is None else f"{row[column]:.3g}" for row in rows], fontsize=7)
        panel.set_title(label, fontsize=9)
        panel.margins(x=0.15)
    axes.flat[0].invert_yaxis()
    figure.suptitle(title, fontsize=9)
    _write(pyplot, figure, file)


def _write(pyplot: Any, figure: Any, file: Path) -> None:
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def draw_replay(lines: Sequence[dict[str, Any]], file: Path) -> None:
    """Hit ratio over slots, a panel a batch size; slots shared by the layers."""
    pyplot, batches = _pyplot(), list(dict.fromkeys(line["batch"] for line in lines))
    size = (4.2 * len(batches), 3.6)
    figure, axes = pyplot.subplots(1, len(batches), figsize=size, layout="constrained", squeeze=False, sharey=True)
    for panel, batch in zip(axes[0], batches, strict=True):
        chosen = [line for line in lines if line["batch"] == batch and line["sharing"] == "pool"]
        for policy in dict.fromkeys(line["policy"] for line in chosen):
            points = sorted((line["slots"], line["hit_ratio"]) for line in chosen if line["policy"] == policy)
            style = "--" if policy in BOUNDS else ":" if "hinted" in policy else "-"
            panel.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=policy)
        panel.set(xlabel="slots a layer", ylabel="hit ratio", title=f"batch {batch}", ylim=(0, 1))
    axes[0][0].legend(fontsize=7)
    _write(pyplot, figure, file)
