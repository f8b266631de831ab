"""S10 from the files of residency.py and matrix.py: equal tokens, and who is killed where the model does not fit."""

from __future__ import annotations

from typing import Any

from ..comparison.compare import NOT_RUN
from .verdict import Seen

OURS = "ExpertFlow"
RESIDENT = "transformers resident"
RUNS = "it runs"
SAME = "every drawn token that of a run with all experts in memory"

Row = dict[str, Any]


def residency(file: dict[str, Any]) -> list[Seen]:
    rows = file["rows"]
    limited = [row for row in rows if row.get("limit_bytes") and row["contender"].startswith(RESIDENT)]
    found: dict[tuple[str, int], str] = {}
    for row in limited:  # one that runs at any batch size is not killed
        who, what = (row["contender"], row["limit_bytes"]), row.get("failure", RUNS)
        found[who] = RUNS if RUNS in (what, found.get(who)) else what
    return _exact("model R", rows) + [_killed(*who, what) for who, what in found.items()]


def matrix(file: dict[str, Any]) -> list[Seen]:
    return _exact("widened", file["rows"])


def _killed(name: str, limit_bytes: int, found: str) -> Seen:
    right = None if found.startswith(NOT_RUN) else found.startswith("killed")
    return Seen("S10", f"model R, {name} in {limit_bytes / 1e9:.2f} GB", "killed", found, right)


def _exact(model: str, rows: list[Row]) -> list[Seen]:
    """Ours, one a budget and limit, over all its batch sizes and states."""
    budgets: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row.get("contender", "").startswith(OURS):
            budgets.setdefault((row["contender"], row["limit_bytes"]), []).append(row)
    return [_equal(model, name, limit_bytes, each) for (name, limit_bytes), each in budgets.items()]


def _equal(model: str, name: str, limit_bytes: int, rows: list[Row]) -> Seen:
    within = f" in {limit_bytes / 1e9:.2f} GB" if limit_bytes else ""
    return Seen("S10", f"{model}, {name}{within}: {SAME}", "yes", *_found(rows))


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
