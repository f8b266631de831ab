"""What a predictor is: tokens in, probabilities of experts out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from ....ipc.messages import PredictStep, StepRouting

CHUNK_TOKENS = 128
"""Tokens forecast at a time; bounds the temporary arrays of a long prompt."""

Stack = Literal["encoder", "decoder"]
"""Of a model that has both."""

Part = tuple[np.ndarray, np.ndarray]
"""Places of some tokens in the message [tokens], and float32 probabilities [tokens, layers, experts]."""


class Forecaster(ABC):
    """Forecasts the routing of a step before it runs. Wrong forecasts cost time, never values (I2)."""

    follows_rows = False
    """Forecasts of a row are better once the routing of its previous token is known."""

    def __init__(self, layers: int, experts: int) -> None:
        self._layers, self._experts = layers, experts

    @abstractmethod
    def parts(self, coming: PredictStep) -> Iterator[Part]:
        """Every token of the step once, in parts of bounded size: the probability that it uses the expert."""

    @abstractmethod
    def learn(self, used: StepRouting) -> None:
        """Takes in how a step was really routed; a malformed message teaches nothing."""

    def forecast(self, coming: PredictStep) -> np.ndarray:
        """float32 [layers, experts]: the probability that at least one token of the step uses the expert."""
        return union((part for _, part in self.parts(coming)), self._layers, self._experts)

    def routes(self, coming: PredictStep) -> np.ndarray:
        """float32 [tokens, layers, experts]: the probability that the token uses the expert."""
        whole = np.zeros((len(coming.token_ids), self._layers, self._experts), dtype=np.float32)
        for places, part in self.parts(coming):
            whole[places] = part
        return whole


def union(parts: Iterable[np.ndarray], layers: int, experts: int) -> np.ndarray:
    """1 − Π (1 − p) over all tokens of `parts` [tokens, layers, experts]: tokens are taken as independent."""
    unused = np.ones((layers, experts), dtype=np.float32)
    for part in parts:
        unused *= (1 - part).prod(axis=0)
    return 1 - unused


def chunks(count: int) -> Iterator[np.ndarray]:
    """Places 0 … count − 1, `CHUNK_TOKENS` at a time."""
    for start in range(0, count, CHUNK_TOKENS):
        yield np.arange(start, min(start + CHUNK_TOKENS, count))


def scores(probabilities: np.ndarray) -> bytes:
    """Probabilities [layers, experts] as the uint8 scores of a `Plan`: 255 is certain; no number counts as 0."""
    bounded = np.clip(np.nan_to_num(probabilities, nan=0.0), 0.0, 1.0)
    return np.rint(bounded * 255).astype(np.uint8).tobytes()
