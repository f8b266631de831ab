"""Draw our own processor time a token over each load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from .style import OURS, STYLES, Row, make_plain, save

CORES = "cores: "
LOADS = {"queued": "queued requests", "rows": "rows of a step", "experts": "experts a layer", "layers": "layers"}


def draw_growth(rows: Sequence[Row], file: Path) -> None:
    """Draw our own processor time over each load, beside the growth that is allowed."""
    named = {row["axis"]: [each for each in rows if each["axis"] == row["axis"]] for row in rows}
    order = [*LOADS, *(f"{CORES}{load}" for load in LOADS)]
    axes = {name: named[name] for name in order if name in named}
    columns = math.ceil(len(axes) / 2)
    figure = Figure(figsize=(2.6 * columns, 5), layout="constrained", facecolor="white")
    panels = figure.subplots(2, columns, squeeze=False).flat
    for panel, (name, costs) in zip(panels, axes.items(), strict=False):
        values = [cost["value"] for cost in costs]
        allowed = [costs[0]["total"] * 1.1 ** math.log2(value / values[0]) for value in values]
        panel.plot(values, allowed, "k:", label="10 % a doubling")
        panel.plot(values, [cost["total"] for cost in costs], "o-", color=STYLES[OURS][0], label="measured")
        load = name.removeprefix(CORES)
        top = 1.1 * max([*allowed, *(cost["total"] for cost in costs)])
        per = "token and layer" if load == "layers" else "token"
        panel.set(xscale="log", xlabel=LOADS[load], ylim=(0, top), ylabel=f"CPU µs a {per}")
        panel.set_title("all processes" if load == name else "cores alone", fontsize=9)
        panel.set_xticks(values, [str(value) for value in values], fontsize=8)
        panel.xaxis.set_minor_locator(NullLocator())
        make_plain(panel)
    figure.axes[0].legend(fontsize=8, frameon=False, loc="lower right")
    save(figure, file)
