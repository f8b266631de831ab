"""What the files of the parts say about the targets."""

from __future__ import annotations

from math import log2
from typing import Any

from ..intervals import Interval, median_interval
from .verdict import Verdict

UNDER_LIMIT = {("accelerate disk offload", 1): 10, ("llama.cpp mmap", 1): 3,
               ("accelerate disk offload", 8): 5, ("llama.cpp mmap", 8): 2}  # fmt: skip
SMALL_LIMIT_BYTES = 1.8e9
"""S4 speaks of about half and a third of model R's 3.3 GB; larger limits are only shown."""
MESSAGES_A_STEP = 4
OF_ONE_PROCESS = 1.05
DISK_RATE = 0.9
TRANSFERS = "transfers, "
OURS_FROM_DISK = "auto"
STEP_TO_BOUND = {1: 1.4}
STEP_TO_BOUND_ELSE = LOADS_TO_LRU = 1.25
STEP_ON_LINK = 1.2
ABOVE_READ_S = 8.0
A_DOUBLING = 0.1


def under_limit(file: dict[str, Any]) -> list[Verdict]:
    """S4: the file of under_limit.py."""
    rows = [row for row in file["rows"] if 0 < row.get("limit_bytes", 0) <= SMALL_LIMIT_BYTES]
    return [_faster(row, goal) for row in rows if (goal := UNDER_LIMIT.get((row["contender"], row["batch"])))]


def _faster(row: dict[str, Any], goal: float) -> Verdict:
    what = f"batch {row['batch']}, {row['limit_bytes'] / 1e9:.2f} GB: times as fast as {row['contender']}"
    figure = Interval(**row["speedup"]) if "speedup" in row else None
    return Verdict("S4", what, goal, at_least=True, figure=figure, note=row.get("failure", ""))


def resident(file: dict[str, Any]) -> list[Verdict]:
    """S1, S2, S6: the file of resident.py."""
    verdicts = []
    for row in file["rows"]:
        target = "S1" if row["what"].startswith("decode") else "S2"
        speed, cost = median_interval(row["of resident"]), median_interval(row["of one process"])
        verdicts.append(Verdict(target, f"{row['what']}: tokens/s, of the best resident backend's", 1.0, True, speed))
        if target == "S1":
            verdicts.append(Verdict("S6", f"{row['what']}: time, of one process's", OF_ONE_PROCESS, False, cost))
            messages = Interval(*[row["messages a step"]] * 3)
            verdicts.append(Verdict("S6", f"{row['what']}: messages a step", MESSAGES_A_STEP, False, messages))
    return verdicts


def disk_rate(rows: list[dict[str, Any]]) -> list[Verdict]:
    """S7: rows of disk_rate.py; the transfer engine with its best number of readers, quartiles for an interval."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["contender"].startswith(TRANSFERS):
            best[row["model"]] = max(best.get(row["model"], row), row, key=lambda each: each["to_best_plain"])
    return [
        Verdict("S7", f"model {name}, {row['contender']}: rate, of the best plain direct reads'", DISK_RATE, True,
                Interval(row["to_best_plain"], *row["quartiles"]))
        for name, row in best.items()
    ]  # fmt: skip


def disk_steps(rows: list[dict[str, Any]]) -> list[Verdict]:
    """S3: rows of disk_steps.py; of the loads only the sum of the blocks is known."""
    verdicts = []
    for row in rows:
        if row["contender"] == OURS_FROM_DISK:
            where = f"model {row['model']}, {row['share']} of the experts, batch {row['batch']}"
            goal, loads = STEP_TO_BOUND.get(row["batch"], STEP_TO_BOUND_ELSE), row["loads_to_lru"]
            verdicts.append(Verdict("S3", f"{where}: step, of its bound", goal, False, median_interval(row["ratios"])))
            exact = Interval(loads, loads, loads)
            verdicts.append(Verdict("S3", f"{where}: loads, of LRU's", LOADS_TO_LRU, False, exact))
    return verdicts


def link(file: dict[str, Any]) -> list[Verdict]:
    """S5: the file of link.py; least and most of the blocks for an interval."""
    return [
        Verdict("S5", f"{row['contender']}: step, of the larger of compute and transfer", STEP_ON_LINK, False,
                Interval(row["ratio"], row["least"], row["most"]))
        for row in file["rows"]
    ]  # fmt: skip


def start_up(rows: list[dict[str, Any]]) -> list[Verdict]:
    """S8: rows of start_up.py."""
    seconds = median_interval([row["above_read"] for row in rows])
    return [Verdict("S8", "seconds to ready beyond reading the skeleton", ABOVE_READ_S, False, seconds)]


def growth(rows: list[dict[str, Any]]) -> list[Verdict]:
    """S9: rows of growth.py; from the first to the last value of an axis, with the spread of both for an interval."""
    axes: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        axes.setdefault(row["axis"], []).append(row)
    return [Verdict("S9", f"{axis}: growth of our cost a doubling", A_DOUBLING, False, _a_doubling(each[0], each[-1]))
            for axis, each in axes.items()]  # fmt: skip


def _a_doubling(first: dict[str, Any], last: dict[str, Any]) -> Interval:
    doublings = log2(last["value"] / first["value"])

    def rate(late: str, early: str) -> float:
        return (last[late] / first[early]) ** (1 / doublings) - 1

    return Interval(rate("total", "total"), rate("least", "most"), rate("most", "least"))
