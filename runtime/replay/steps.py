"""A trace cut into steps: the experts that each step uses, and the messages that it causes in a timed replay."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import UsageError
from ...ipc.messages import PredictStep, StepRouting
from ...workers.traces.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Uses:
    """Distinct experts of every step, one union a layer. An expert's key is layer * experts + expert."""

    layers: int
    experts: int
    starts: np.ndarray
    """int64 [steps + 1]: index of each step's first key in `keys`, and the end."""
    keys: np.ndarray
    """int64: ascending within a step, which is the order in which layers run."""
    tokens: np.ndarray
    """int64 [steps]: tokens of each step."""

    @property
    def steps(self) -> int:
        return len(self.starts) - 1

    def of(self, step: int) -> np.ndarray:
        """Return int64 [n]: the keys of a step, ascending."""
        return self.keys[self.starts[step] : self.starts[step + 1]]

    def head(self, steps: int) -> Uses:
        """Return the uses of the first steps alone."""
        starts = self.starts[: steps + 1]
        return replace(self, starts=starts, keys=self.keys[: starts[-1]], tokens=self.tokens[:steps])

    def split(self, keys: np.ndarray) -> list[np.ndarray]:
        """Split ascending keys, int64 [n], into one array a layer."""
        return np.split(keys, np.searchsorted(keys, np.arange(1, self.layers) * self.experts))


def first_tokens(trace: Trace, count: int) -> Trace:
    """Return the first `count` tokens of a trace; the last sequence may be cut."""
    if count >= trace.tokens:
        return trace
    offsets = np.unique(np.minimum(trace.offsets, count))
    names = ("routes", "token_ids", "decoded", "weights", "steps")
    arrays = {name: getattr(trace, name) for name in names}
    return replace(trace, offsets=offsets, **{n: None if a is None else a[:count] for n, a in arrays.items()})


def batch_steps(trace: Trace, rows: int) -> np.ndarray:
    """Return int64 [tokens]: the step of each token when `rows` sequences run side by side, one token each a step.

    A row takes the next sequence of the trace when its own has ended. Raises UsageError if `rows` is below 1.
    """
    if rows < 1:
        raise UsageError(f"must be at least 1, not {rows}", "batch", "Give a positive number")
    free_at = [0] * min(rows, trace.sequences)
    steps = np.empty(trace.tokens, dtype=np.int64)
    for begin, end in zip(trace.offsets[:-1].tolist(), trace.offsets[1:].tolist(), strict=True):
        start = heapq.heappop(free_at)
        steps[begin:end] = np.arange(start, start + end - begin)
        heapq.heappush(free_at, start + end - begin)
    return steps


def recorded_steps(trace: Trace) -> np.ndarray:
    """Return int64 [tokens]: the recorded steps, numbered without gaps. Raises UsageError if none are recorded."""
    if trace.steps is None:
        what = "the trace does not say which tokens ran together"
        raise UsageError(what, "batch", "Give the number of rows to replay side by side")
    return np.unique(trace.steps, return_inverse=True)[1].astype(np.int64)


def uses_of(trace: Trace, steps: np.ndarray) -> Uses:
    """Return the uses of a trace whose tokens run in `steps`, int64 [tokens]."""
    width = trace.layers * trace.expert_count
    count = int(steps.max()) + 1
    keys = trace.routes + (np.arange(trace.layers) * trace.expert_count)[None, :, None]
    pairs = np.unique(steps[:, None] * width + keys.reshape(trace.tokens, -1))
    return Uses(
        layers=trace.layers,
        experts=trace.expert_count,
        starts=np.searchsorted(pairs, np.arange(count + 1) * width),
        keys=pairs % width,
        tokens=np.bincount(steps, minlength=count),
    )


class Program:
    """Steps that compute runs in a timed replay, with the messages of a real run."""

    def __init__(self, trace: Trace, steps: np.ndarray) -> None:
        self.layers, self.experts, self.top_k = trace.layers, trace.expert_count, trace.top_k
        order = np.argsort(steps, kind="stable")
        self._routes = trace.routes[order]
        self._token_ids = trace.token_ids[order]
        lengths = np.diff(trace.offsets)
        self._rows = np.repeat(np.arange(trace.sequences), lengths)[order]
        self._positions = (np.arange(trace.tokens) - np.repeat(trace.offsets[:-1], lengths))[order]
        self._bounds = np.searchsorted(steps[order], np.arange(int(steps.max()) + 2))

    @property
    def steps(self) -> int:
        return len(self._bounds) - 1

    def experts_of(self, step: int, layer: int) -> dict[int, int]:
        """Return the experts that a layer uses, ascending, and the number of tokens of each."""
        experts, counts = np.unique(self._routes[self._tokens(step), layer], return_counts=True)
        return dict(zip(experts.tolist(), counts.tolist(), strict=True))

    def prediction_request(self, step: int) -> PredictStep:
        """Return the message that the predictor receives before the step."""
        return PredictStep(step=step, **self._columns(step))

    def step_routing(self, step: int, hits: int, misses: int, stall_ns: int) -> StepRouting:
        """Return the message that the loader receives after the step."""
        routes = self._routes[self._tokens(step)].astype("<u2").tobytes()
        columns = self._columns(step)
        return StepRouting(
            step=step, top_k=self.top_k, experts=routes, hits=hits, misses=misses, stall_ns=stall_ns, **columns
        )

    def _tokens(self, step: int) -> slice:
        return slice(int(self._bounds[step]), int(self._bounds[step + 1]))

    def _columns(self, step: int) -> dict[str, Any]:
        tokens = self._tokens(step)
        arrays = {"token_ids": self._token_ids, "rows": self._rows, "positions": self._positions}
        return {name: array[tokens].tolist() for name, array in arrays.items()}
