"""Times of products out of a kernel table, for any number of rows."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from ...workers.kernels.table import ROW_STEPS, KernelTable

TIMED_BYTES = 16 << 20
"""Weights above this size are timed by a part of it (workers/kernels/workloads.py)."""
STREAM_BYTES_PER_S = 8e9
"""Rate of weights that no table has a time for: of one row on a small machine."""
CALL_S = 15e-6
"""Time of a call whatever its size."""


def shape_s(table: KernelTable, key: str, weight_bytes: int, rows: float) -> float:
    """Return the seconds of the chosen kernel of a shape at a number of rows, between two steps by interpolation."""
    times = step_times_s(table, key)
    return _between(times, rows) * max(1.0, weight_bytes / TIMED_BYTES)


def streaming_s(table: KernelTable, weight_bytes: int, rows: float) -> float:
    """Return the seconds of a shape that was not timed: the largest timed one's, by its bytes, or a plain rate."""
    timed = {key: _weight_bytes(key) for key in table.times_us}
    key = max(timed, key=lambda each: timed[each], default="")
    if not key or not timed[key]:
        return CALL_S + weight_bytes / STREAM_BYTES_PER_S * max(1.0, rows / ROW_STEPS[4])
    return CALL_S + _between(step_times_s(table, key), rows) * weight_bytes / min(timed[key], TIMED_BYTES)


def step_times_s(table: KernelTable, key: str) -> list[float]:
    """Return the seconds at each of `ROW_STEPS`, never falling: a run that was disturbed looks slower than more rows.

    Steps that were not timed go on in proportion to their rows.
    """
    times: list[float] = []
    for rows, choice, step in zip(ROW_STEPS, table.choices[key], table.times_us[key], strict=False):
        found = step.get(choice) or min(step.values(), default=0.0)
        times.append(found / 1e6 if found or not times else times[-1] * 2)
        if not times[-1]:
            times[-1] = CALL_S * rows
    while len(times) < len(ROW_STEPS):
        times.append(times[-1] * 2)
    return list(accumulate(reversed(times), min))[::-1]


def _between(times: list[float], rows: float) -> float:
    """Return the time at `rows`: linear between two steps, in proportion beyond the last."""
    if rows >= ROW_STEPS[-1]:
        return times[-1] * rows / ROW_STEPS[-1]
    index = max(bisect_right(ROW_STEPS, rows), 1) - 1
    low, high = ROW_STEPS[index], ROW_STEPS[index + 1]
    part = (max(rows, low) - low) / (high - low)
    return times[index] + part * (times[index + 1] - times[index])


def _weight_bytes(key: str) -> int:
    """Return the bytes of the weights of a linear layer's key, 0 for another (`LinearShape.key`)."""
    kind, dtype, extent, *_ = key.split()
    outputs, _, inputs = extent.partition("x")
    return int(outputs) * int(inputs) * (4 if dtype == "float32" else 2) if kind == "linear" else 0
