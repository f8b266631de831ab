"""What is kept of a case: one row of a table."""

from __future__ import annotations

import statistics
from typing import Any

from ..contender.order import Answered


def row_of(answered: Answered, batch: int, warm: int) -> dict[str, Any]:
    """Milliseconds; the first `warm` decode steps are not counted. A step is one token of each row."""
    times = [1e3 * each for each in answered.steps_s[warm:]]
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {
        "batch": batch,
        "first_ms": 1e3 * answered.first_s,
        "step_ms": statistics.median(times),
        "step_quartiles_ms": [quartiles[0], quartiles[2]],
        "mean_step_ms": statistics.mean(times),
        "steps": len(times),
        "tokens": answered.tokens,
        "facts": answered.facts,
    }
