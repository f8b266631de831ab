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
    """The distinct experts of every step: one union a layer. An expert's key is layer * experts + expert."""

    layers: int
    experts: int
    starts: np.ndarray
    """int64 [steps + 1]: where each step begins in `keys`, and the end."""
    keys: np.ndarray
    """int64: ascending within a step, that is in the order in which the layers run."""
    tokens: np.ndarray
    """int64 [steps]: how many tokens a step runs."""

    @property
    def steps(self) -> int:
        return len(self.starts) - 1

    def of(self, step: int) -> np.ndarray:
        """The keys of a step."""
        return self.keys[self.starts[step] : self.starts[step + 1]]

    def head(self, steps: int) -> Uses:
        """Its first steps alone."""
        starts = self.starts[: steps + 1]
        return replace(self, starts=starts, keys=self.keys[: starts[-1]], tokens=self.tokens[:steps])

    def split(self, keys: np.ndarray) -> list[np.ndarray]:
        """Ascending keys, one array a layer."""
        return np.split(keys, np.searchsorted(keys, np.arange(1, self.layers) * self.experts))


def first_tokens(trace: Trace, count: int) -> Trace:
    """The trace up to `count` tokens; the last sequence may be cut."""
    if count >= trace.tokens:
        return trace
    offsets = np.unique(np.minimum(trace.offsets, count))
    names = ("routes", "token_ids", "decoded", "weights", "steps")
    arrays = {name: getattr(trace, name) for name in names}
    return replace(trace, offsets=offsets, **{n: None if a is None else a[:count] for n, a in arrays.items()})


def batch_steps(trace: Trace, rows: int) -> np.ndarray:
    """int64 [tokens]: the step of each token when `rows` sequences run side by side, one token of each a step.

    A row takes the next sequence of the trace when its own has ended.
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
    """int64 [tokens]: the steps that the engine ran, numbered without gaps. Raises UsageError if none are recorded."""
    if trace.steps is None:
        what = "the trace does not say which tokens ran together"
        raise UsageError(what, "batch", "Give the number of rows to replay side by side")
    return np.unique(trace.steps, return_inverse=True)[1].astype(np.int64)


def uses_of(trace: Trace, steps: np.ndarray) -> Uses:
    """The unions of a trace whose tokens run in `steps`."""
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
    """The tokens of a trace, ordered by the step that runs them."""

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
        """The experts that a layer uses, ascending, and how many tokens each has."""
        experts, counts = np.unique(self._routes[self._tokens(step), layer], return_counts=True)
        return dict(zip(experts.tolist(), counts.tolist(), strict=True))

    def forecast(self, step: int) -> PredictStep:
        """What the predictor hears before the step."""
        return PredictStep(step=step, **self._where(step))

    def used(self, step: int, hits: int, misses: int, stall_ns: int) -> StepRouting:
        """What the loader hears after the step."""
        routes = self._routes[self._tokens(step)].astype("<u2").tobytes()
        where = self._where(step)
        return StepRouting(
            step=step, top_k=self.top_k, experts=routes, hits=hits, misses=misses, stall_ns=stall_ns, **where
        )

    def _tokens(self, step: int) -> slice:
        return slice(int(self._bounds[step]), int(self._bounds[step + 1]))

    def _where(self, step: int) -> dict[str, Any]:
        tokens = self._tokens(step)
        arrays = {"token_ids": self._token_ids, "rows": self._rows, "positions": self._positions}
        return {name: array[tokens].tolist() for name, array in arrays.items()}
