"""Runs a predictor over a trace as an engine would: a prediction for every step, then the step's real routing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ....ipc.messages import PredictStep, StepRouting
from ...traces.trace import Trace
from ..base.forecaster import Forecaster

MESSAGE_TOKENS = 512
"""Tokens of one message when a predictor only learns."""


@dataclass(frozen=True)
class JudgedStep:
    """Prediction and real routing of one step."""

    forecast: np.ndarray
    """float32 [tokens, layers, experts], probabilities."""
    routes: np.ndarray
    """int64 [tokens, layers, top_k], expert numbers."""


def decode(
    forecaster: Forecaster, trace: Trace, rows: int = 32, learning: bool = True, prompt: float = 0.0
) -> Iterator[JudgedStep]:
    """Run every sequence token by token, `rows` of them side by side: the routing of all earlier tokens is known.

    The share `prompt` of each sequence runs first, in one step, and is not judged.
    """
    waiting = list(np.argsort(np.diff(trace.offsets), kind="stable"))
    running: dict[int, int] = {}
    step = 0
    while waiting or running:
        while waiting and len(running) < rows:
            row = int(waiting.pop())
            running |= _begin_row(forecaster, trace, row, prompt, learning)
        chosen, positions = list(running), list(running.values())
        if chosen:
            yield _judge_step(forecaster, trace, step, chosen, positions, learning)
        running = {row: done + 1 for row, done in running.items() if done + 1 < _length(trace, row)}
        step += 1


def _begin_row(forecaster: Forecaster, trace: Trace, row: int, prompt: float, learning: bool) -> dict[int, int]:
    """Run the prompt of a row; return row → first position to decode, nothing if the prompt is all of it."""
    done = round(prompt * _length(trace, row))
    if done and learning:
        indices = trace.offsets[row] + np.arange(done)
        forecaster.learn(step_routing_at(trace, 0, [row] * done, list(range(done)), indices))
    return {row: done} if done < _length(trace, row) else {}


def _length(trace: Trace, row: int) -> int:
    return int(trace.offsets[row + 1] - trace.offsets[row])


def prefill(forecaster: Forecaster, trace: Trace) -> Iterator[JudgedStep]:
    """Run every sequence in one step: none of its routing is known."""
    for row in range(trace.sequences):
        length = _length(trace, row)
        yield _judge_step(forecaster, trace, row, [row] * length, list(range(length)), learning=False)


def learn_trace(forecaster: Forecaster, trace: Trace) -> None:
    """Let a predictor learn from all sequences."""
    for row in range(trace.sequences):
        begin, end = trace.offsets[row : row + 2].tolist()
        for first in range(begin, end, MESSAGE_TOKENS):
            indices = np.arange(first, min(first + MESSAGE_TOKENS, end))
            positions = (indices - begin).tolist()
            forecaster.learn(step_routing_at(trace, row, [row] * len(indices), positions, indices))


def _judge_step(
    forecaster: Forecaster, trace: Trace, step: int, rows: list[int], positions: list[int], learning: bool
) -> JudgedStep:
    indices = trace.offsets[rows] + np.array(positions, dtype=np.int64)
    ids = trace.token_ids[indices].tolist()
    request = PredictStep(step=step, token_ids=ids, rows=rows, positions=positions)
    forecast = forecaster.forecast_tokens(request)
    if learning:
        forecaster.learn(step_routing_at(trace, step, rows, positions, indices))
    return JudgedStep(forecast, trace.routes[indices].astype(np.int64))


def step_routing_at(trace: Trace, step: int, rows: list[int], positions: list[int], indices: np.ndarray) -> StepRouting:
    """Return the message about the tokens of the trace at `indices`, int64 [tokens]."""
    return StepRouting(
        step=step,
        token_ids=trace.token_ids[indices].tolist(),
        rows=rows,
        positions=positions,
        top_k=trace.top_k,
        experts=trace.routes[indices].astype("<u2").tobytes(),
        hits=0,
        misses=0,
        stall_ns=0,
    )
