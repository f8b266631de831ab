"""Draw the study: tokens a second of the main systems over the rate of the link, the slots and the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..plots.style import draw_labelled, make_panels, save
from .cells import BASE, Cell
from .figures import cell_of, figures_of
from .measure import Result
from .systems import MAIN

AXES = {"link": "link, of what on demand needs", "slots": "slots, % of the experts", "batch": "batch"}
Points = list[tuple[float, float]]


def draw_study(results: Sequence[Result], file: Path) -> None:
    """Draw a panel an axis that has two points of a system; nothing if no axis has."""
    drawn = {axis: lines for axis in AXES if (lines := lines_along(results, axis))}
    if not drawn:
        return
    figure, panels = make_panels(len(drawn), 4.6)
    for panel, (axis, lines) in zip(panels, drawn.items(), strict=True):
        draw_labelled(panel, lines)
        panel.set(xlabel=AXES[axis], ylabel="tokens/s")
    save(figure, file)


def lines_along(results: Sequence[Result], axis: str) -> dict[str, Points]:
    """Return system -> (value, tokens a second), for the systems with two points or more along `axis`."""
    lines: dict[str, Points] = {}
    for system in MAIN:
        points = [
            (_number(getattr(cell_of(result), axis)), figures_of(result).tokens_per_s.estimate)
            for result in results
            if _differs_only(cell_of(result), BASE._replace(system=system), axis)
        ]
        if len(points) > 1:
            lines[system] = sorted(points)
    return lines


def _differs_only(cell: Cell, base: Cell, axis: str) -> bool:
    return cell._replace(**{axis: getattr(base, axis)}) == base


def _number(value: str | float) -> float:
    return float(value.rstrip("%")) if isinstance(value, str) else float(value)
