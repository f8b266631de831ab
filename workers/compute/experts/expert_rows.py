"""Orders the (token, choice) pairs of a layer by expert: the rows of an expert are adjacent (I1a)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...kernels.products import padded_rows

ROWS_MULTIPLE = 8
"""The library's grouped product requires a multiple of this as its total row count."""


class ExpertRows(NamedTuple):
    """Rows of a layer by expert. Pair i is choice i % top-k of token i // top-k."""

    experts: list[int]
    """The chosen experts, ascending."""
    bounds: list[int]
    """First row of each expert, and the end of the last."""
    pair_of_row: np.ndarray
    """int64 [rows]. Spare rows, after those of an expert and at the end, hold pair 0; their results are dropped."""
    row_of_pair: np.ndarray
    """int64 [tokens * top-k]."""
    counts: list[int]
    """Rows of each expert, without the spare ones."""

    @property
    def max_rows(self) -> int:
        """Rows of the busiest expert."""
        return int(np.diff(self.bounds).max(initial=0))

    def ends(self, experts: int) -> np.ndarray:
        """Return where the rows of each of all `experts` end, int32 [experts]."""
        counts = np.zeros(experts, dtype=np.int32)
        counts[self.experts] = np.diff(self.bounds)
        return counts.cumsum(dtype=np.int32)


def rows_by_expert(routes: np.ndarray, run_rows: Callable[[int], int] = padded_rows) -> ExpertRows:
    """Order the pairs of routes, int [tokens, top-k], by expert; pairs of one expert keep their order.

    `run_rows` returns how many rows are run for a number of rows, so that an expert may get spare ones.
    """
    flat = routes.reshape(-1)
    if len(routes) == 1 and run_rows(1) == 1 and (rows := _rows_of_token(flat)) is not None:
        return rows
    counts = np.bincount(flat)
    experts = np.flatnonzero(counts)
    counts = counts[experts]
    rows = np.array([run_rows(count) for count in counts.tolist()], dtype=np.int64)
    bounds = np.append(0, rows.cumsum())
    order = np.argsort(flat, kind="stable")
    spare = bounds[:-1] - np.append(0, counts.cumsum())[:-1]
    row_of_pair = np.empty_like(order)
    row_of_pair[order] = np.arange(order.size) + np.repeat(spare, counts)
    pair_of_row = np.zeros(-(-bounds[-1] // ROWS_MULTIPLE) * ROWS_MULTIPLE, dtype=np.int64)
    pair_of_row[row_of_pair] = np.arange(order.size)
    return ExpertRows(experts.tolist(), bounds.tolist(), pair_of_row, row_of_pair, counts.tolist())


def _rows_of_token(flat: np.ndarray) -> ExpertRows | None:
    """Return the rows of one token, one for each expert, as the general way makes them; None if it chose one twice."""
    order = flat.argsort(kind="stable")
    experts: list[int] = flat[order].tolist()
    count = len(experts)
    if len(set(experts)) < count:
        return None
    row_of_pair = np.empty_like(order)
    row_of_pair[order] = np.arange(count)
    pair_of_row = np.zeros(-(-count // ROWS_MULTIPLE) * ROWS_MULTIPLE, dtype=np.int64)
    pair_of_row[:count] = order
    return ExpertRows(experts, list(range(count + 1)), pair_of_row, row_of_pair, [1] * count)
