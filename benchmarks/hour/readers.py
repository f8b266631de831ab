"""What the files of the parts say about the targets."""

from __future__ import annotations

from typing import Any

from ..intervals import Interval, median_interval
from .verdict import Verdict

UNDER_LIMIT = {("accelerate disk offload", 1): 10, ("llama.cpp mmap", 1): 3,
               ("accelerate disk offload", 8): 5, ("llama.cpp mmap", 8): 2}  # fmt: skip
MESSAGES_A_STEP = 4
OF_ONE_PROCESS = 1.05
DISK_RATE = 0.9
TRANSFERS = "transfers, "


def under_limit(file: dict[str, Any]) -> list[Verdict]:
    """S4: the file of under_limit.py."""
    rows = file["rows"]
    return [
        _faster(row, goal) for row in rows if (goal := UNDER_LIMIT.get((row.get("contender", ""), row.get("batch", 0))))
    ]


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
