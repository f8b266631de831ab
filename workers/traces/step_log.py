"""Predictions, hints and times of every step of a trace. Together with a `Trace` it is all that replay needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from .records import TracedPlan, TracedStep, TraceHeader


@dataclass(frozen=True, kw_only=True)
class StepLog:
    """T steps in the order in which they ran. Times are nanoseconds; `_ns` moments are of the monotonic clock."""

    header: TraceHeader
    """Sizes: layers, experts, top_k, expert_bytes, slots."""
    units: np.ndarray
    """int64 [T]: the unit that stepped."""
    decoded: np.ndarray
    """bool [T]: a decode step, not a prefill."""
    tokens: np.ndarray
    """int64 [T]: tokens that ran, including those of recomputed sequences, which `Trace` leaves out."""
    started_ns: np.ndarray
    busy_ns: np.ndarray
    stall_ns: np.ndarray
    """int64 [T]: the part of `busy_ns` in which compute waited for experts."""
    compute_ns: np.ndarray
    """int64 [T, layers + 1] without stalls: before the first MoE layer, then from routing to routing."""
    hits: np.ndarray
    misses: np.ndarray
    """int64 [T]: experts, over all layers."""
    hinted: np.ndarray
    """bool [T]: the step had hints."""
    hints: np.ndarray
    """uint8 [T, layers, experts], 255 is certain; 0 for steps without hints."""
    planned: np.ndarray
    """bool [T]: a plan was sent."""
    plans: np.ndarray
    """uint8 [T, layers, experts], 255 is certain; 0 for steps without a plan."""
    planned_ns: np.ndarray
    """int64 [T]: moment at which the plan was sent; -1 for steps without a plan."""


def make_step_log(header: TraceHeader, steps: list[TracedStep], plans: Mapping[int, TracedPlan]) -> StepLog:
    """Return the arrays of these steps; `plans` are by step."""
    sent = [plans.get(step.step) for step in steps]
    shape = (header.layers, header.experts)
    columns = ("started_ns", "busy_ns", "stall_ns", "compute_ns", "hits", "misses")
    return StepLog(
        header=header,
        units=_numbers(step.unit for step in steps),
        decoded=np.array([step.phase == "decode" for step in steps]),
        tokens=_numbers(len(step.token_ids) for step in steps),
        hinted=np.array([bool(step.hints) for step in steps]),
        hints=_scores([step.hints for step in steps], shape),
        planned=np.array([plan is not None for plan in sent]),
        plans=_scores([plan.scores if plan else b"" for plan in sent], shape),
        planned_ns=_numbers(plan.sent_ns if plan else -1 for plan in sent),
        **{name: np.array([getattr(step, name) for step in steps], dtype=np.int64) for name in columns},
    )


def _numbers(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, dtype=np.int64)


def _scores(packed: list[bytes], shape: tuple[int, int]) -> np.ndarray:
    """Return uint8 [T, layers, experts]; an entry that is empty or of another size is 0."""
    scores = np.zeros((len(packed), *shape), dtype=np.uint8)
    for step, values in enumerate(packed):
        if len(values) == shape[0] * shape[1]:
            scores[step] = np.frombuffer(values, dtype=np.uint8).reshape(shape)
    return scores
