"""Share what all pictures have in common: colours, panels, scales, labels, and how a picture is saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

Row = Mapping[str, Any]
Line = list[tuple[float, float]]
OURS = "ExpertFlow"
STYLES: dict[str, tuple[str, str]] = {
    OURS: ("#d95f02", "o"),
    "llama.cpp": ("#1f78b4", "s"),
    "accelerate": ("#33a02c", "^"),
    "transformers": ("#666666", "D"),
    "vLLM": ("#984ea3", "v"),
}
"""Colour and marker of each contender."""
OTHERS = ("#1f78b4", "#33a02c", "#984ea3", "#e7298a", "#a6761d", "#666666", "#17becf", "#000000", "#999999")
LIGHT = "#dddddd"
TICKS = tuple(digit * 10.0**power for power in range(-2, 4) for digit in (1, 2, 5))
MEMORY_TICKS = (0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16)
"""Gigabytes."""


def make_panels(count: int, width: float = 3.5) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(width * count, 5.0), 3.6), layout="constrained", facecolor="white")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def make_logarithmic(panel: Axes) -> None:
    """Make memory and tokens a second logarithmic, with plain numbers."""
    panel.set(xscale="log", yscale="log")
    for axis, ticks in ((panel.xaxis, MEMORY_TICKS), (panel.yaxis, TICKS)):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    make_plain(panel)


def make_plain(panel: Axes) -> None:
    panel.grid(axis="y", color=LIGHT)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def share_legend(figure: Figure, panels: Sequence[Axes], below: float = 1.5) -> None:
    """Give all panels one scale of tokens a second, and one legend above them."""
    low = min(panel.dataLim.y0 for panel in panels)
    high = max(panel.dataLim.y1 for panel in panels)
    found = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    for panel in panels:
        panel.set(ylim=(low / below, high * 1.4), xlim=(panel.dataLim.x0 / 1.15, panel.dataLim.x1 * 1.15))
        found |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(found.values(), found, loc="outside upper center", ncols=len(found), fontsize=9, frameon=False)


def draw_labelled(panel: Axes, lines: Mapping[str, Line], dashed: Iterable[str] = ()) -> None:
    """Draw lines with their names at their right ends, pushed apart where they are close."""
    ends: list[tuple[float, str, str]] = []
    others = iter(OTHERS * 2)
    colours = {OURS: STYLES[OURS][0], "popularity": STYLES[OURS][0]}
    for name, line in lines.items():
        colour = colours.setdefault(name.partition(",")[0], "")
        if not colour:
            colour = colours[name] = next(others)
        style = "--" if name in dashed else ":" if "hinted" in name else "-"
        panel.plot(*columns(line), style, marker="o", markersize=3.5, color=colour, linewidth=1.8)
        ends.append((line[-1][1], name, colour))
    top = max(y for line in lines.values() for _, y in line) * 1.05
    ends.sort()
    for at, (_, name, colour) in zip(spread_labels([y / top for y, *_ in ends]), ends, strict=True):
        panel.text(1.03, at, name, transform=panel.transAxes, fontsize=8, color=colour, va="center")
    panel.set_ylim(0, top)
    make_plain(panel)


def spread_labels(heights: Sequence[float], gap: float = 0.06) -> list[float]:
    """Push ascending heights apart, none above 1."""
    spread: list[float] = []
    for height in heights:
        spread.append(max(height, spread[-1] + gap) if spread else height)
    ceiling = 1.0
    for index in reversed(range(len(spread))):
        spread[index] = min(spread[index], ceiling)
        ceiling = spread[index] - gap
    return spread


def lines_by(rows: Sequence[Row], name: str, x: str, y: str, unit: float = 1.0) -> dict[Any, Line]:
    """Group rows into lines by `name`, with `x` in units."""
    lines: dict[Any, Line] = {}
    for row in rows:
        lines.setdefault(row[name], []).append((row[x] / unit, row[y]))
    return {name: sorted(line) for name, line in lines.items()}


def columns(line: Line) -> tuple[list[float], list[float]]:
    return [x for x, _ in line], [y for _, y in line]


def save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=160)
