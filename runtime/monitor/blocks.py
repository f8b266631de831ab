"""Pictures made of characters: sparklines, bars and the block map of a cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SPARKS = "▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"
SHADES = "·░▒▓█"
"""Share of a bin's experts that are in memory: none, up to a third, up to two thirds, more, all."""
GAP = " "


def sparkline(values: Sequence[float | None], width: int, top: float | None = None) -> str:
    """Return the last `width` values as bars of one character, a gap where there is no value.

    `top` is the value of the highest bar; None: the largest value.
    """
    shown = list(values)[-width:] if width > 0 else []
    known = [value for value in shown if value is not None]
    high = (max(known, default=0.0) if top is None else top) or 1.0
    text = "".join(GAP if value is None else SPARKS[_step(value / high, len(SPARKS))] for value in shown)
    return text.rjust(width)


def bar(share: float, width: int) -> str:
    """Return a bar that fills `share` (0 to 1) of `width` characters, to an eighth of a character."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return (EIGHTHS[8] * full + (EIGHTHS[rest] if rest else "")).ljust(width)


def resample(values: Sequence[float | None], count: int) -> list[float | None]:
    """Return `count` means of equal parts of the values, in order; all values if there are no more than `count`."""
    if len(values) <= count:
        return list(values)
    edges = [len(values) * part // count for part in range(count + 1)]
    return [_mean(values[first:last]) for first, last in zip(edges, edges[1:], strict=False)]


def bin_map(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return the means of `values` [layers, experts] in at most `rows` × `columns` bins, float64."""
    for axis, limit in ((0, rows), (1, columns)):
        size = values.shape[axis]
        if size > limit > 0:
            edges = np.arange(limit) * size // limit
            sums = np.add.reduceat(values.astype(np.float64), edges, axis=axis)
            counts = np.diff(np.append(edges, size))
            values = sums / (counts[:, None] if axis == 0 else counts)
    return values.astype(np.float64)


def shade(share: float) -> str:
    """Return the character for a share of experts in memory, 0 to 1."""
    if share <= 0:
        return SHADES[0]
    return SHADES[4] if share >= 1 else SHADES[1 + _step(share, 3)]


def _step(share: float, steps: int) -> int:
    """Return which of `steps` equal parts a share lies in."""
    return min(steps - 1, max(0, int(share * steps)))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
