"""Predictors that are wrong on purpose: whatever they say, results must not change (I2)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ....ipc.messages import PredictStep, StepRouting
from ..base.forecaster import Forecaster, Part, chunks


class Noise(Forecaster):
    """Uniform random probabilities of the whole step, a function of seed and step; its tokens all expect the same."""

    def __init__(self, layers: int, experts: int, seed: int) -> None:
        super().__init__(layers, experts)
        self._seed = seed

    def forecast(self, coming: PredictStep) -> np.ndarray:
        rng = np.random.default_rng([self._seed, max(coming.step, 0)])
        return rng.random((self._layers, self._experts), dtype=np.float32)

    def parts(self, coming: PredictStep) -> Iterator[Part]:
        thrown = self.forecast(coming)
        for places in chunks(len(coming.token_ids)):
            yield places, np.broadcast_to(thrown, (len(places), *thrown.shape))

    def learn(self, used: StepRouting) -> None:
        """Noise does not learn."""


class Opposite(Forecaster):
    """Promises exactly what an honest predictor thinks unlikely."""

    def __init__(self, honest: Forecaster) -> None:
        self._honest = honest

    def forecast(self, coming: PredictStep) -> np.ndarray:
        return np.float32(1.0) - self._honest.forecast(coming)

    def routes(self, coming: PredictStep) -> np.ndarray:
        return np.float32(1.0) - self._honest.routes(coming)

    def parts(self, coming: PredictStep) -> Iterator[Part]:
        for places, honest in self._honest.parts(coming):
            yield places, np.float32(1.0) - honest

    def learn(self, used: StepRouting) -> None:
        self._honest.learn(used)
