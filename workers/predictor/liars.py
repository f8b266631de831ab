"""Predictors that are wrong on purpose: whatever they say, results must not change (I2)."""

from __future__ import annotations

import numpy as np

from ...ipc.messages import Forecast, Used
from .forecaster import Forecaster


class Noise:
    """Uniform random probabilities, a function of seed and step."""

    def __init__(self, layers: int, experts: int, seed: int) -> None:
        self._shape, self._seed = (layers, experts), seed

    def forecast(self, coming: Forecast) -> np.ndarray:
        dice = np.random.default_rng([self._seed, max(coming.step, 0)])
        return dice.random(self._shape, dtype=np.float32)

    def routes(self, coming: Forecast) -> np.ndarray:
        dice = np.random.default_rng([self._seed, max(coming.step, 0), len(coming.token_ids)])
        return dice.random((len(coming.token_ids), *self._shape), dtype=np.float32)

    def learn(self, used: Used) -> None:
        """Noise does not learn."""


class Opposite:
    """Promises exactly what an honest predictor thinks unlikely."""

    def __init__(self, honest: Forecaster) -> None:
        self._honest = honest

    def forecast(self, coming: Forecast) -> np.ndarray:
        return np.float32(1.0) - self._honest.forecast(coming)

    def routes(self, coming: Forecast) -> np.ndarray:
        return np.float32(1.0) - self._honest.routes(coming)

    def learn(self, used: Used) -> None:
        self._honest.learn(used)
