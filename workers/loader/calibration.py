"""What forecasts and hints are worth, measured: the share of experts that were used, among those foretold likewise.

A far plan says how likely an expert is, a near hint says it again when the layer before begins, and either may be good
or bad for a layer. Instead of believing them, the loader counts: for each layer, and each pair of (what the plan
said, what the hint said) in eighths, how many such experts were used in the end. So good sources are merged by
what they are worth, and a liar is soon worth no more than the average expert.
"""

from __future__ import annotations

import numpy as np

LEVELS = 9
UNKNOWN = LEVELS
"""The level of a plan or hint that was not given."""
PRIOR = 6.0
"""Weighs what was said itself like so many observations."""
MEMORY = 4000.0
"""Observations of one kind that are remembered; older ones fade."""
LIKELY = 0.5
ACCURATE = 0.7
"""Measured accuracy from which on a forecast may say who goes first (break-even measured elsewhere: about 0.70)."""
FADE = 0.98
"""A layer of a step weighs so much of the next one in the measured accuracy."""


def levels(scores: np.ndarray) -> np.ndarray:
    """uint8 scores as levels 0 (certainly not) to LEVELS - 1 (certain), intp."""
    return (scores.astype(np.intp) * (LEVELS - 1) + 127) // 255


class Calibration:
    """Counts for each layer; `plan` and `hint` are levels, UNKNOWN where nothing was said.

    With `uncalibrated`, sources are taken at their word for ever, and only their accuracy is measured.
    """

    def __init__(self, layers: int, uncalibrated: bool = False) -> None:
        self._uncalibrated = uncalibrated
        said = np.linspace(0.0, 1.0, LEVELS)
        said = np.clip(np.append(said, np.nan), 0.5 / LEVELS, 1 - 0.5 / LEVELS)
        plan, hint = said[:, None], said[None, :]
        guess = np.where(np.isnan(hint), np.broadcast_to(plan, (LEVELS + 1, LEVELS + 1)), hint)
        guess = np.nan_to_num(guess, nan=0.0)
        self._used = np.broadcast_to(guess * PRIOR, (layers, LEVELS + 1, LEVELS + 1)).copy()
        self._seen = np.full_like(self._used, PRIOR)
        self._right = self._foretold = self._actual = 0.0

    def chances(self, layer: np.ndarray | int, plan: np.ndarray, hint: np.ndarray | int = UNKNOWN) -> np.ndarray:
        """float64: the measured chance of use; the arguments broadcast."""
        return self._used[layer, plan, hint] / self._seen[layer, plan, hint]

    def learn(self, layer: int, plan: np.ndarray, hint: np.ndarray, used: np.ndarray) -> None:
        """A layer was run: `plan`, `hint` (levels [experts]) and what was `used` (bool [experts])."""
        self._judge(self.chances(layer, plan) >= LIKELY, used)
        if self._uncalibrated:
            return
        self._count(layer, plan, hint, used)
        if (hint != UNKNOWN).any():
            self._count(layer, plan, np.full_like(hint, UNKNOWN), used)

    def _count(self, layer: int, plan: np.ndarray, hint: np.ndarray, used: np.ndarray) -> None:
        kinds = plan * (LEVELS + 1) + hint
        seen = np.bincount(kinds, minlength=(LEVELS + 1) ** 2).reshape(LEVELS + 1, LEVELS + 1)
        right = np.bincount(kinds, weights=used, minlength=(LEVELS + 1) ** 2).reshape(seen.shape)
        self._seen[layer] += seen
        self._used[layer] += right
        fade = np.minimum(1.0, MEMORY / self._seen[layer])
        self._seen[layer] *= fade
        self._used[layer] *= fade

    def _judge(self, foretold: np.ndarray, used: np.ndarray) -> None:
        self._right = FADE * self._right + float((foretold & used).sum())
        self._foretold = FADE * self._foretold + float(foretold.sum())
        self._actual = FADE * self._actual + float(used.sum())

    @property
    def accuracy(self) -> float:
        """Of plans, over recent layers: F1 of the experts foretold as likely, against those used."""
        both = self._foretold + self._actual
        return 2 * self._right / both if both else 0.0
