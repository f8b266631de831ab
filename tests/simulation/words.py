"""Details of events in words, for scripts."""

from __future__ import annotations

from typing import Any

import msgspec
from expertflow.ipc.messages import Published, RunStep, StepPrediction, StepRouting
from expertflow.tests.simulation.plan import PlannedRequest

MAX_WORDS = 160


def describe(detail: Any) -> str:
    """Return `: ` and the detail; nothing if there is none."""
    return "" if detail is None else f": {_words(detail)[:MAX_WORDS]}"


def _words(detail: Any) -> str:
    match detail:
        case str():
            return detail
        case PlannedRequest():
            return f"{len(detail.prompt)} tokens, at most {detail.max_new_tokens} more"
        case Published(stats):
            return f"Published done {stats.done}, queue {stats.queue}, waits for {stats.waiting_on or 'nobody'}"
        case RunStep():
            rows = ", ".join(str(row.number) for row in detail.admit)
            return f"RunStep {detail.number} of unit {detail.unit}" + (f" with rows {rows}" if rows else "")
        case StepPrediction(step):
            return f"StepPrediction of step {step}"
        case StepRouting():
            return f"StepRouting of step {detail.step}"
        case msgspec.Struct():
            fields = [f"{name} {getattr(detail, name)}" for name in detail.__struct_fields__]
            return f"{type(detail).__name__} " + ", ".join(fields)
        case _:
            return str(detail)
