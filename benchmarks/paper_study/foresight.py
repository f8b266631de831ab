"""Sources that know the future of a replayed trace, for a part of the loader; and one that expects everything."""

from __future__ import annotations

import numpy as np
from expertflow.ipc.messages import StepPrediction, StepRouting
from expertflow.runtime.replay.future import Belady
from expertflow.runtime.replay.steps import Program

CERTAIN = 255


class ForeseenSteps:
    """Predictions that are true, of the step that begins and of `ahead` steps after it."""

    def __init__(self, program: Program, ahead: int) -> None:
        self._program, self._ahead, self._sent = program, ahead, 0

    def begin(self, step: int) -> list[tuple[int, StepPrediction]]:
        """Return the predictions of steps not predicted so far, each without delay."""
        first, end = self._sent, min(step + self._ahead + 1, self._program.steps)
        self._sent = max(end, first)
        return [(0, StepPrediction(each, self.scores(each))) for each in range(first, end)]

    def learn(self, routing: StepRouting) -> None:
        """Ignore the routing: it is known."""

    def scores(self, step: int) -> bytes:
        """Return uint8 [layers, experts]: CERTAIN for each expert that the step uses, else 0."""
        scores = np.zeros((self._program.layers, self._program.experts), np.uint8)
        for layer in range(self._program.layers):
            scores[layer, list(self._program.experts_of(step, layer))] = CERTAIN
        return scores.tobytes()


class EverythingUsed:
    """Predictions that every expert of a step is used, as SE-MoE's ring of layers takes it."""

    def __init__(self, program: Program) -> None:
        self._scores = bytes([CERTAIN]) * (program.layers * program.experts)

    def begin(self, step: int) -> list[tuple[int, StepPrediction]]:
        """Return the prediction of this step, without delay."""
        return [(0, StepPrediction(step, self._scores))]

    def learn(self, routing: StepRouting) -> None:
        """Ignore the routing: it changes nothing."""


class ForeseenUses(Belady):
    """A policy that knows the future, for the loader: hits of a layer without a miss are reported at a step's end."""

    def used(self, keys: np.ndarray, step: int) -> None:
        """Advance the next use of these keys, int64 [count], ascending, beyond `step`. It may be called twice."""
        self.touched(keys, step)
