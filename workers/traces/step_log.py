"""What every step of a trace was told and what it took: with a `Trace`, all that replay needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from .records import TracedPlan, TracedStep, TraceHeader


@dataclass(frozen=True, kw_only=True)
class StepLog:
    """T steps in the order they ran. Times are nanoseconds; moments are of the machine's monotonic clock."""

    header: TraceHeader
    """Sizes: layers, experts, top_k, expert_bytes, slots."""
    units: np.ndarray
    """int64 [T]: the unit that stepped."""
    decoded: np.ndarray
    """bool [T]: a decode step, not a prefill."""
    tokens: np.ndarray
    """int64 [T]: tokens that ran, those of recomputed sequences included, which `Trace` leaves out."""
    started_ns: np.ndarray
    busy_ns: np.ndarray
    stall_ns: np.ndarray
    """Of `busy_ns`, waiting for experts."""
    compute_ns: np.ndarray
    """int64 [T, layers + 1] without stalls: before the first MoE layer, then from each one's choice to the next's."""
    hits: np.ndarray
    misses: np.ndarray
    """int64 [T]: experts, over all layers."""
    hinted: np.ndarray
    """bool [T]: hints were given."""
    hints: np.ndarray
    """uint8 [T, layers, experts]; 0 where none were given."""
    planned: np.ndarray
    """bool [T]: a plan was sent."""
    plans: np.ndarray
    """uint8 [T, layers, experts]; 0 where none was sent."""
    planned_ns: np.ndarray
    """int64 [T]: when it was sent, -1 where none was."""


def log_steps(header: TraceHeader, steps: list[TracedStep], plans: Mapping[int, TracedPlan]) -> StepLog:
    """The arrays of these steps; `plans` by step."""
    given = [plans.get(step.step) for step in steps]
    shape = (header.layers, header.experts)
    columns = ("started_ns", "busy_ns", "stall_ns", "compute_ns", "hits", "misses")
    return StepLog(
        header=header,
        units=_numbers(step.unit for step in steps),
        decoded=np.array([step.phase == "decode" for step in steps]),
        tokens=_numbers(len(step.token_ids) for step in steps),
        hinted=np.array([bool(step.hints) for step in steps]),
        hints=_scores([step.hints for step in steps], shape),
        planned=np.array([plan is not None for plan in given]),
        plans=_scores([plan.scores if plan else b"" for plan in given], shape),
        planned_ns=_numbers(plan.sent_ns if plan else -1 for plan in given),
        **{name: np.array([getattr(step, name) for step in steps], dtype=np.int64) for name in columns},
    )


def _numbers(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, dtype=np.int64)


def _scores(given: list[bytes], shape: tuple[int, int]) -> np.ndarray:
    """uint8 [T, layers, experts]; what is empty or of another size is 0."""
    scores = np.zeros((len(given), *shape), dtype=np.uint8)
    for place, each in enumerate(given):
        if len(each) == shape[0] * shape[1]:
            scores[place] = np.frombuffer(each, dtype=np.uint8).reshape(shape)
    return scores
