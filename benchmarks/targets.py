"""Judge the targets S1 to S10 (K1 to K7: kernel_targets.py) by the result files that the parts of `make bench` write.

Each reader takes the parsed JSON of one file and returns its verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import log2
from typing import Any, NamedTuple

from .comparison.runs import NOT_RUN
from .intervals import Interval, median_interval

Row = dict[str, Any]


class Verdict(NamedTuple):
    """Compare a figure with its target; `at_least`: the target is a lower bound, else an upper one."""

    target: str
    what: str
    goal: float
    at_least: bool
    figure: Interval | None
    note: str = ""
    """The reason, if there is no figure."""

    @property
    def outcome(self) -> str:
        """Return `met` when the interval reaches the target, else `not met`, or `not run`."""
        if self.figure is None:
            return "not run"
        if self.at_least:
            return "met" if self.figure.high >= self.goal else "not met"
        return "met" if self.figure.low <= self.goal else "not met"

    @property
    def cells(self) -> tuple[str, ...]:
        sign = "≥" if self.at_least else "≤"
        return (self.target, self.what, f"{sign} {self.goal:g}", str(self.figure or self.note or "–"), self.outcome)


class Observation(NamedTuple):
    """Record what is to happen beside what happened."""

    target: str
    what: str
    wanted: str
    found: str
    right: bool | None
    """None: not run."""

    @property
    def outcome(self) -> str:
        if self.right is None:
            return "not run"
        return "met" if self.right else "not met"

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.target, self.what, self.wanted, self.found, self.outcome)


UNDER_LIMIT = {("accelerate disk offload", 1): 10.0, ("llama.cpp mmap", 1): 3.0,
               ("accelerate disk offload", 8): 5.0, ("llama.cpp mmap", 8): 2.0}  # fmt: skip
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
    """Judge S4 by the file of `compare under-limit`."""
    return under_limit_speedups("S4", file, UNDER_LIMIT)


def in_bits(bits: int, verdicts: list[Verdict]) -> list[Verdict]:
    """Say in verdicts that ours ran a copy whose experts have so many bits."""
    return [verdict._replace(what=f"{bits} bits, {verdict.what}") for verdict in verdicts]


def under_limit_speedups(target: str, file: dict[str, Any], goals: dict[tuple[str, int], float]) -> list[Verdict]:
    """Judge how many times as fast we are in less than about half of the model; goals by contender and batch size."""
    rows = [row for row in file["rows"] if 0 < row.get("limit_bytes", 0) <= SMALL_LIMIT_BYTES]
    return [_faster(target, row, goal) for row in rows if (goal := goals.get((row["contender"], row["batch"])))]


def _faster(target: str, row: dict[str, Any], goal: float) -> Verdict:
    what = f"batch {row['batch']}, {row['limit_bytes'] / 1e9:.2f} GB: times as fast as {row['contender']}"
    figure = Interval(**row["speedup"]) if "speedup" in row else None
    return Verdict(target, what, goal, at_least=True, figure=figure, note=row.get("failure", ""))


def resident(file: dict[str, Any]) -> list[Verdict]:
    """Judge S1, S2 and S6 by the file of resident.py."""
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
    """Judge S7 by the rows of `transfer disk-rate`: the best number of readers, quartiles for an interval."""
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
    """Judge S3 by the rows of `transfer disk-steps`; of the loads only the sum of the blocks is known."""
    verdicts = []
    for row in rows:
        if row["contender"] == OURS_FROM_DISK:
            verdicts += step_to_bound("S3", [row], lambda batch: STEP_TO_BOUND.get(batch, STEP_TO_BOUND_ELSE))
            exact = Interval(*[row["loads_to_lru"]] * 3)
            verdicts.append(Verdict("S3", f"{_setting(row)}: loads, of LRU's", LOADS_TO_LRU, False, exact))
    return verdicts


def step_to_bound(target: str, rows: Iterable[Row], goal: Callable[[int], float]) -> list[Verdict]:
    """Judge our steps from disk against their bound; the goal by batch size."""
    return [
        Verdict(target, f"{_setting(row)}: step, of its bound", goal(row["batch"]), False,
                median_interval(row["ratios"]))
        for row in rows
        if row["contender"] == OURS_FROM_DISK
    ]  # fmt: skip


def _setting(row: Row) -> str:
    return f"model {row['model']}, {row['share']} of the experts, batch {row['batch']}"


def link(file: dict[str, Any]) -> list[Verdict]:
    """Judge S5 by the file of `transfer link`; least and most of the blocks for an interval."""
    return [
        Verdict("S5", f"{row['contender']}: step, of the larger of compute and transfer", STEP_ON_LINK, False,
                Interval(row["ratio"], row["least"], row["most"]))
        for row in file["rows"]
    ]  # fmt: skip


def start_up(rows: list[dict[str, Any]]) -> list[Verdict]:
    """Judge S8 by the rows of start_up.py."""
    seconds = median_interval([row["above_read"] for row in rows])
    return [Verdict("S8", "seconds to ready beyond reading the skeleton", ABOVE_READ_S, False, seconds)]


def growth(rows: list[dict[str, Any]]) -> list[Verdict]:
    """Judge S9 by the rows of growth, from the first to the last value of an axis, with the spread of both."""
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


OURS = "ExpertFlow"
RESIDENT = "transformers resident"
RUNS = "it runs"
SAME = "every drawn token that of a run with all experts in memory"


def residency(file: dict[str, Any]) -> list[Observation]:
    """Judge S10 by the file of `compare residency`: equal tokens, and who is killed where the model does not fit."""
    rows = file["rows"]
    limited = [row for row in rows if row.get("limit_bytes") and row["contender"].startswith(RESIDENT)]
    found: dict[tuple[str, int], str] = {}
    for row in limited:  # one that runs at any batch size is not killed
        who, what = (row["contender"], row["limit_bytes"]), row.get("failure", RUNS)
        found[who] = RUNS if RUNS in (what, found.get(who)) else what
    return _exact("model R", rows) + [_killed(*who, what) for who, what in found.items()]


def matrix(file: dict[str, Any]) -> list[Observation]:
    """Judge S10 by the file of `compare matrix`: equal tokens."""
    return _exact("widened", file["rows"])


def _killed(name: str, limit_bytes: int, found: str) -> Observation:
    right = None if found.startswith(NOT_RUN) else found.startswith("killed")
    return Observation("S10", f"model R, {name} in {limit_bytes / 1e9:.2f} GB", "killed", found, right)


def _exact(model: str, rows: list[Row]) -> list[Observation]:
    """Judge our rows, one verdict a budget and limit, over all its batch sizes and states."""
    budgets: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row.get("contender", "").startswith(OURS):
            budgets.setdefault((row["contender"], row["limit_bytes"]), []).append(row)
    return [_equal(model, name, limit_bytes, each) for (name, limit_bytes), each in budgets.items()]


def _equal(model: str, name: str, limit_bytes: int, rows: list[Row]) -> Observation:
    within = f" in {limit_bytes / 1e9:.2f} GB" if limit_bytes else ""
    return Observation("S10", f"{model}, {name}{within}: {SAME}", "yes", *_found(rows))


def _found(rows: list[Row]) -> tuple[str, bool | None]:
    run = [row for row in rows if not row.get("failure", "").startswith(NOT_RUN)]
    if not run:
        return rows[0]["failure"], None
    if failure := next((row["failure"] for row in run if "failure" in row), ""):
        return failure, False
    shares = [row["identical"] for row in run if row.get("identical") is not None]
    if not shares:
        return "nothing to compare with", None
    right, cases = min(shares) == 1.0, f"{len(shares)} of {len(rows)} cases"
    return (f"yes, {cases}" if right else f"no: {100 * min(shares):.1f} % in one of {cases}"), right
