"""Picture of a finished study: `python -m expertflow.examples.studies.recommend.picture RESULT.json FILE.png`."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from .report import Row, grouped


def draw(result: Row, file: Path) -> None:
    """Draw items encoded and users ranked a second, and AUC by window if a stream has run, into one file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = [_draw_items, _draw_users, *([_draw_windows] if result["streams"] else [])]
    figure, places = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.6), layout="constrained")
    for panel, axes in zip(panels, places, strict=True):
        panel(axes, result)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _draw_windows(axes: Any, result: Row) -> None:
    """Draw the AUC of each window, mean over seeds."""
    published = [run["windows"] for run in result["streams"] if run["threshold"]]
    lines = {f"XSMoE, {name}": [_auc(runs, name) for runs in zip(*published, strict=True)] for name in ("dense", "k=1")}
    for (model,), runs in grouped(result["baselines"], "model").items():
        lines[model] = [_auc(each) for each in zip(*(run["windows"] for run in runs), strict=True)]
    for name, values in lines.items():
        style = "-" if name.startswith("XSMoE") else "--"
        axes.plot(range(1, len(values) + 1), values, style, marker=".", label=name)
    axes.set(xlabel="window trained", ylabel="AUC on the next window", title="Quality along the stream")
    axes.margins(y=0.35)  # room for the names above the lines
    axes.legend(fontsize=7, ncols=2, loc="upper left")


def _auc(windows: tuple[Row, ...], choice: str = "") -> float:
    return statistics.mean((window["quality"][choice] if choice else window["quality"])["auc"] for window in windows)


def _draw_items(axes: Any, result: Row) -> None:
    """Draw items encoded, a second of processor time, by active experts."""
    for (model,), runs in grouped([rate for rate in result["speed"] if rate["unit"] == "items"], "model").items():
        axes.loglog([run["batch"] for run in runs], [run["per_second"] for run in runs], marker=".", label=model)
    axes.set(xlabel="batch (items)", ylabel="items encoded a second", title="Encoding items")
    axes.legend(fontsize=7)


def _draw_users(axes: Any, result: Row) -> None:
    """Draw users ranked over all items, a second of processor time."""
    for (model,), runs in grouped([rate for rate in result["speed"] if rate["users_per_second"]], "model").items():
        rates = [run["users_per_second"] for run in runs]
        axes.loglog([run["batch"] for run in runs], rates, "-" if model == "XSMoE" else "--", marker=".", label=model)
    axes.set(xlabel="batch (users, or pairs)", ylabel="users ranked a second", title="Ranking all items for a user")
    axes.legend(fontsize=7)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
