"""Runs a predictor over a trace as an engine would: a forecast of every step, then the routing it really had."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ....ipc.messages import PredictStep, StepRouting
from ...traces.trace import Trace
from ..base.forecaster import Forecaster

TAUGHT_TOKENS = 512
"""Tokens of one message when a predictor is only taught."""


@dataclass(frozen=True)
class Judged:
    """One step: what was forecast, and what came."""

    forecast: np.ndarray
    """float32 [tokens, layers, experts]"""
    routes: np.ndarray
    """int64 [tokens, layers, top_k]"""


def decode(
    forecaster: Forecaster, trace: Trace, rows: int = 32, learning: bool = True, prompt: float = 0.0
) -> Iterator[Judged]:
    """Every sequence token by token, `rows` of them side by side: the routing of all earlier tokens is known.

    The share `prompt` of each sequence ran before, at once, and is not judged.
    """
    waiting = list(np.argsort(np.diff(trace.offsets), kind="stable"))
    running: dict[int, int] = {}
    step = 0
    while waiting or running:
        while waiting and len(running) < rows:
            row = int(waiting.pop())
            running |= _begun(forecaster, trace, row, prompt, learning)
        chosen, positions = list(running), list(running.values())
        if chosen:
            yield _step(forecaster, trace, step, chosen, positions, learning)
        running = {row: done + 1 for row, done in running.items() if done + 1 < _length(trace, row)}
        step += 1


def _begun(forecaster: Forecaster, trace: Trace, row: int, prompt: float, learning: bool) -> dict[int, int]:
    """The row and its first position to decode, after its prompt; nothing if the prompt is all of it."""
    done = round(prompt * _length(trace, row))
    if done and learning:
        places = trace.offsets[row] + np.arange(done)
        forecaster.learn(used_at(trace, 0, [row] * done, list(range(done)), places))
    return {row: done} if done < _length(trace, row) else {}


def _length(trace: Trace, row: int) -> int:
    return int(trace.offsets[row + 1] - trace.offsets[row])


def prefill(forecaster: Forecaster, trace: Trace) -> Iterator[Judged]:
    """Every sequence at once: nothing of its routing is known."""
    for row in range(trace.sequences):
        length = _length(trace, row)
        yield _step(forecaster, trace, row, [row] * length, list(range(length)), learning=False)


def teach(forecaster: Forecaster, trace: Trace) -> None:
    """Lets a predictor learn from all sequences."""
    for row in range(trace.sequences):
        begin, end = trace.offsets[row : row + 2].tolist()
        for first in range(begin, end, TAUGHT_TOKENS):
            places = np.arange(first, min(first + TAUGHT_TOKENS, end))
            forecaster.learn(used_at(trace, row, [row] * len(places), (places - begin).tolist(), places))


def _step(
    forecaster: Forecaster, trace: Trace, step: int, rows: list[int], positions: list[int], learning: bool
) -> Judged:
    places = trace.offsets[rows] + np.array(positions, dtype=np.int64)
    ids = trace.token_ids[places].tolist()
    forecast = forecaster.routes(PredictStep(step=step, token_ids=ids, rows=rows, positions=positions))
    if learning:
        forecaster.learn(used_at(trace, step, rows, positions, places))
    return Judged(forecast, trace.routes[places].astype(np.int64))


def used_at(trace: Trace, step: int, rows: list[int], positions: list[int], places: np.ndarray) -> StepRouting:
    """The message about tokens `places` of the trace."""
    return StepRouting(
        step=step,
        token_ids=trace.token_ids[places].tolist(),
        rows=rows,
        positions=positions,
        top_k=trace.top_k,
        experts=trace.routes[places].astype("<u2").tobytes(),
        hits=0,
        misses=0,
        stall_ns=0,
    )
