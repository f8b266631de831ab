"""What compute runs in a timed replay: the steps of a trace, as the messages of a real run tell them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ipc.messages import PredictStep, StepRouting
from ...workers.traces.trace import Trace


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
