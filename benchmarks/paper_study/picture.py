"""Draw how many times as fast as the main systems ExpertFlow is, over the rate of the link, the slots, the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..plots.style import draw_labelled, make_panels, save
from .cells import BASE, BATCHES, LINKS, SLOTS
from .figures import find_pair, speed_up
from .measure import Result
from .systems import MAIN

LABELS = {"link": "link, of what on demand needs", "slots": "slots, % of the experts", "batch": "batch"}
AXES: dict[str, Sequence[str | float]] = {"link": LINKS, "slots": SLOTS, "batch": BATCHES}
Points = list[tuple[float, float]]


def draw_study(runs: Sequence[Sequence[Result]], file: Path) -> None:
    """Draw a panel an axis that has two points of a system; nothing if no axis has."""
    drawn = {axis: lines for axis in AXES if (lines := lines_along(runs, axis))}
    if not drawn:
        return
    figure, panels = make_panels(len(drawn), 4.6)
    for panel, (axis, lines) in zip(panels, drawn.items(), strict=True):
        draw_labelled(panel, lines)
        panel.axhline(1.0, linewidth=0.8, color="grey")
        panel.set(xlabel=LABELS[axis], ylabel="ExpertFlow's tokens/s over theirs")
    save(figure, file)


def lines_along(runs: Sequence[Sequence[Result]], axis: str) -> dict[str, Points]:
    """Return system -> (value, ExpertFlow's speed over its), for systems with two points or more along `axis`."""
    lines: dict[str, Points] = {}
    for system in MAIN[1:]:
        pairs = {value: find_pair(runs, BASE._replace(system=system, **{axis: value})) for value in AXES[axis]}
        points = [(_number(value), speed_up(*pair).estimate) for value, pair in pairs.items() if pair]
        if len(points) > 1:
            lines[system] = points
    return lines


def _number(value: str | float) -> float:
    return float(value.rstrip("%")) if isinstance(value, str) else float(value)
