"""Messages of made-up routing for the tests of the predictors."""

from __future__ import annotations

import numpy as np
from expertflow.ipc.messages import PredictStep, StepRouting


def used_of(step: int, token_ids: list[int], routing: np.ndarray, rows: list[int] | None = None) -> StepRouting:
    """`routing` is [tokens, layers, top_k]; rows default to 0, 1, … and all positions are the step."""
    tokens, _, top_k = routing.shape
    return StepRouting(
        step=step,
        token_ids=token_ids,
        rows=list(range(tokens)) if rows is None else rows,
        positions=[step] * tokens,
        top_k=top_k,
        experts=routing.astype("<u2").tobytes(),
        hits=0,
        misses=0,
        stall_ns=0,
    )


def coming(step: int, token_ids: list[int], rows: list[int] | None = None) -> PredictStep:
    rows = list(range(len(token_ids))) if rows is None else rows
    return PredictStep(step=step, token_ids=token_ids, rows=rows, positions=[step] * len(token_ids))


def same_everywhere(layers: int, experts: list[int]) -> np.ndarray:
    """One token that uses these experts in every layer: [1, layers, top_k]."""
    return np.array([[experts] * layers])
