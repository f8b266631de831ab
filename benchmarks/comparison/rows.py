"""Compute what a comparison's table says: one row a contender, limit, batch size and state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ..contenders.base import CaseResult
from ..contenders.running import Run
from ..intervals import Interval, Pair, paired_speedup, quantile

FACTS = (
    "expert_share", "hit_ratio", "forecast_precision", "forecast_recall", "bytes_per_token", "wasted_bytes_per_token",
    "stall_share", "busy_compute", "busy_loader", "busy_predictor", "busy_scheduler", "threads",
)  # fmt: skip


@dataclass
class Cell:
    """Hold the runs of one contender on one case, in the order of the repeats; a repeat that failed is None."""

    contender: str
    limit_bytes: int
    batch: int
    answers: list[CaseResult | None] = field(default_factory=list)
    failure: str = ""
    ready_s: list[float] = field(default_factory=list)
    pss_peak_bytes: int = 0
    group_peak_bytes: int = 0
    state: str = ""
    step_tokens: int = 0
    """Tokens of a step; 0: one a row."""

    def add(self, run: Run, index: int) -> None:
        """Add the `index`-th case of a run."""
        self.answers.append(run.answer.cases[index] if run.answer else None)
        self.failure = self.failure or run.failure
        self.ready_s += [run.answer.ready_s] if run.answer else []
        self.pss_peak_bytes = max(self.pss_peak_bytes, run.pss_peak_bytes)
        self.group_peak_bytes = max(self.group_peak_bytes, run.group_peak_bytes or 0)

    @property
    def case(self) -> tuple[int, str]:
        return self.batch, self.state

    @property
    def steps_s(self) -> list[float]:
        return [each for answer in self.answers if answer for each in answer.steps_s]


def as_row(cell: Cell, ours: Cell | None, reference: Cell | None) -> dict[str, Any]:
    """Return a cell as plain data; `ours` is to be compared with it, None for ours itself; `reference` has the right
    tokens."""
    row: dict[str, Any] = {"contender": cell.contender, "limit_bytes": cell.limit_bytes, "batch": cell.batch}
    row |= {"state": cell.state} if cell.state else {}
    if cell.failure or not cell.steps_s:
        row["failure"] = cell.failure or "no steps"
    if cell.steps_s:
        row |= _figures(cell) | {"identical": identical(cell, reference) if reference else None}
    if cell.steps_s and ours and ours.steps_s:
        row["speedup"] = speedup(ours, cell)._asdict()
    return row


def identical(cell: Cell, reference: Cell) -> float | None:
    """Return the share of equal tokens: drawn ones where both draw, else the likeliest after the same tokens.

    None if there are none to compare.
    """
    right = next((answer for answer in reference.answers if answer), None)
    if right is None:
        return None
    equal = [same for mine in cell.answers if mine for same in _equal(mine, right)]
    return sum(equal) / len(equal) if equal else None


def _equal(mine: CaseResult, right: CaseResult) -> list[bool]:
    rows = zip(mine.tokens or mine.choices, right.tokens if mine.tokens else right.choices, strict=False)
    return [one == other for ours, theirs in rows for one, other in zip(ours, theirs, strict=False)]


def speedup(ours: Cell, theirs: Cell) -> Interval:
    """Return ours over theirs, in tokens a second; steps are paired by repeat and place."""
    runs: list[Sequence[Pair]] = [
        list(zip(mine.steps_s, other.steps_s, strict=False))
        for mine, other in zip(ours.answers, theirs.answers, strict=False)
        if mine and other
    ]
    return paired_speedup(runs)


def rate(cell: Cell) -> Interval:
    """Return tokens a second: those of the steps over the time of the steps."""
    tokens = cell.step_tokens or cell.batch
    return paired_speedup([[(each, tokens) for each in answer.steps_s] for answer in cell.answers if answer])


def _figures(cell: Cell) -> dict[str, Any]:
    done = [answer for answer in cell.answers if answer]
    steps_s, tokens_per_s = cell.steps_s, rate(cell)
    return _facts(done) | {
        "runs": len(done),
        "steps": len(steps_s),
        "ready_s": median(cell.ready_s),
        "first_s": median(answer.first_s for answer in done),
        "step_p50_s": median(steps_s),
        "step_p99_s": quantile(steps_s, 0.99),
        "tokens_per_s": tokens_per_s.estimate,
        "rate": tokens_per_s._asdict(),
        "pss_peak_bytes": cell.pss_peak_bytes,
        "group_peak_bytes": cell.group_peak_bytes,
    }


def _facts(done: Sequence[CaseResult]) -> dict[str, float]:
    """Return medians over the repeats that know them."""
    known = {name: [answer.facts[name] for answer in done if name in answer.facts] for name in FACTS}
    return {name: median(values) for name, values in known.items() if values}
