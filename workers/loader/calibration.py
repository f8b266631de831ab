"""Online calibration: the probability of a prediction is the measured hit rate of past ones like it.

A step prediction gives the chance of an expert early. A hint gives it again when the layer before begins. Either may be
good or bad for a layer, so the loader counts. For each layer, and each pair of stated levels (prediction, hint) in
eighths, it counts how many such experts were used. Sources are so merged by their measured value, and a useless source
converges to the base rate.
"""

from __future__ import annotations

import numpy as np

LEVELS = 9
UNKNOWN = LEVELS
"""Level of a missing prediction or hint."""
PRIOR = 6.0
"""Weight of the stated chance itself, in observations."""
MEMORY = 4000.0
"""Observations remembered for each pair of levels; older ones fade."""
LIKELY = 0.5
ACCURATE = 0.7
"""Measured accuracy from which on predictions rank victims (break-even measured elsewhere: about 0.70)."""
FADE = 0.98
"""Weight of a layer of a step in the measured accuracy, relative to the next one."""


def levels(scores: np.ndarray) -> np.ndarray:
    """Return uint8 scores as levels, intp of the same shape: 0 (certainly unused) to LEVELS - 1 (certainly used)."""
    return (scores.astype(np.intp) * (LEVELS - 1) + 127) // 255


class Calibration:
    """Counts by layer and stated levels. `plan` and `hint` are levels, UNKNOWN where nothing was stated.

    With `uncalibrated`, stated chances are never corrected; only their accuracy is measured.
    """

    def __init__(self, layers: int, uncalibrated: bool = False) -> None:
        self._uncalibrated = uncalibrated
        stated = np.linspace(0.0, 1.0, LEVELS)
        stated = np.clip(np.append(stated, np.nan), 0.5 / LEVELS, 1 - 0.5 / LEVELS)
        plan, hint = stated[:, None], stated[None, :]
        guess = np.where(np.isnan(hint), np.broadcast_to(plan, (LEVELS + 1, LEVELS + 1)), hint)
        guess = np.nan_to_num(guess, nan=0.0)
        self._used = np.broadcast_to(guess * PRIOR, (layers, LEVELS + 1, LEVELS + 1)).copy()
        self._observed = np.full_like(self._used, PRIOR)
        self._right = self._predicted = self._actual = 0.0
        self.predicted = self.needed = self.predicted_needed = 0
        """Experts called likely by predictions, experts used, and both, in all layers that had a prediction."""

    def chances(self, layer: np.ndarray | int, plan: np.ndarray, hint: np.ndarray | int = UNKNOWN) -> np.ndarray:
        """Return the measured chance of use, float64, 0 to 1.

        `plan` and `hint` are levels, intp, mostly [experts]; all arguments broadcast, and the result has their shape.
        """
        return self._used[layer, plan, hint] / self._observed[layer, plan, hint]

    def learn(self, layer: int, plan: np.ndarray, hint: np.ndarray, used: np.ndarray) -> None:
        """Count a layer that ran: levels `plan` and `hint`, intp [experts], and what was `used`, bool [experts]."""
        self._judge(self.chances(layer, plan) >= LIKELY, used)
        if self._uncalibrated:
            return
        self._count(layer, plan, hint, used)
        if (hint != UNKNOWN).any():
            self._count(layer, plan, np.full_like(hint, UNKNOWN), used)

    def _count(self, layer: int, plan: np.ndarray, hint: np.ndarray, used: np.ndarray) -> None:
        pairs = plan * (LEVELS + 1) + hint
        observed = np.bincount(pairs, minlength=(LEVELS + 1) ** 2).reshape(LEVELS + 1, LEVELS + 1)
        right = np.bincount(pairs, weights=used, minlength=(LEVELS + 1) ** 2).reshape(observed.shape)
        self._observed[layer] += observed
        self._used[layer] += right
        fade = np.minimum(1.0, MEMORY / self._observed[layer])
        self._observed[layer] *= fade
        self._used[layer] *= fade

    def _judge(self, predicted: np.ndarray, used: np.ndarray) -> None:
        both, named, needed = (int(np.count_nonzero(experts)) for experts in (predicted & used, predicted, used))
        self._right = FADE * self._right + both
        self._predicted = FADE * self._predicted + named
        self._actual = FADE * self._actual + needed
        self.predicted_needed += both
        self.predicted += named
        self.needed += needed

    @property
    def accuracy(self) -> float:
        """Return the F1 score, 0 to 1, of experts predicted as likely against those used, over recent layers."""
        both = self._predicted + self._actual
        return 2 * self._right / both if both else 0.0
