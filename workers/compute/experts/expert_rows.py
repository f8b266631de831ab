"""Lays the (token, choice) pairs of a layer out by expert: all rows of an expert are neighbours (I1a)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .projection import padded_rows

ROWS_MULTIPLE = 8
"""What the library's grouped product asks of the rows in all."""


class ExpertRows(NamedTuple):
    """Pair i is choice i % top-k of token i // top-k."""

    experts: list[int]
    """Those that were chosen, ascending."""
    bounds: list[int]
    """Where the rows of each begin, and the end of the last."""
    pairs: np.ndarray
    """int64 [rows]: the pair in each row. Spare rows, among the others and at the end, hold pair 0;
    what comes out of them is dropped."""
    places: np.ndarray
    """int64 [pairs]: the row of each pair."""

    @property
    def most(self) -> int:
        """Rows of the busiest expert."""
        return int(np.diff(self.bounds).max(initial=0))

    def ends(self, experts: int) -> np.ndarray:
        """int32 [experts]: where the rows of each of all `experts` end."""
        counts = np.zeros(experts, dtype=np.int32)
        counts[self.experts] = np.diff(self.bounds)
        return counts.cumsum(dtype=np.int32)


def rows_by_expert(routes: np.ndarray) -> ExpertRows:
    """routes [tokens, top-k] -> rows by expert, pairs of one expert in their own order."""
    flat = routes.reshape(-1)
    counts = np.bincount(flat)
    experts = np.flatnonzero(counts)
    counts = counts[experts]
    rows = np.array([padded_rows(count) for count in counts.tolist()], dtype=np.int64)
    bounds = np.append(0, rows.cumsum())
    order = np.argsort(flat, kind="stable")
    spare = bounds[:-1] - np.append(0, counts.cumsum())[:-1]
    places = np.empty_like(order)
    places[order] = np.arange(order.size) + np.repeat(spare, counts)
    pairs = np.zeros(-(-bounds[-1] // ROWS_MULTIPLE) * ROWS_MULTIPLE, dtype=np.int64)
    pairs[places] = np.arange(order.size)
    return ExpertRows(experts.tolist(), bounds.tolist(), pairs, places)
