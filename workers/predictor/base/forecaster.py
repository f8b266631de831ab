"""The interface of a predictor: tokens in, probabilities of experts out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from ....ipc.messages import PredictStep, StepRouting

CHUNK_TOKENS = 128
"""Tokens predicted at a time; bounds the temporary arrays of a long prompt."""

Stack = Literal["encoder", "decoder"]
"""Name of one stack of an encoder-decoder model."""

Part = tuple[np.ndarray, np.ndarray]
"""Indices of some tokens of the request, int64 [tokens], and their float32 probabilities [tokens, layers, experts]."""


class Forecaster(ABC):
    """Predicts the routing of a step before it runs. Wrong predictions cost time, never values (I2)."""

    follows_rows = False
    """A prediction for a row is better once the routing of the row's previous token is known."""

    def __init__(self, layers: int, experts: int) -> None:
        self._layers, self._experts = layers, experts

    @abstractmethod
    def parts(self, request: PredictStep) -> Iterator[Part]:
        """Yield every token of the step once, in parts of bounded size: the probability that it uses each expert."""

    @abstractmethod
    def learn(self, routing: StepRouting) -> None:
        """Learn from the real routing of a step; ignore a malformed message."""

    def forecast(self, request: PredictStep) -> np.ndarray:
        """Return float32 [layers, experts]: the probability that at least one token of the step uses the expert."""
        return union((part for _, part in self.parts(request)), self._layers, self._experts)

    def forecast_tokens(self, request: PredictStep) -> np.ndarray:
        """Return float32 [tokens, layers, experts]: the probability that the token uses the expert."""
        whole = np.zeros((len(request.token_ids), self._layers, self._experts), dtype=np.float32)
        for indices, part in self.parts(request):
            whole[indices] = part
        return whole


def union(parts: Iterable[np.ndarray], layers: int, experts: int) -> np.ndarray:
    """Return 1 − Π (1 − p), float32 [layers, experts], over all tokens of `parts` [tokens, layers, experts].

    It takes the tokens as independent.
    """
    unused = np.ones((layers, experts), dtype=np.float32)
    for part in parts:
        unused *= (1 - part).prod(axis=0)
    return 1 - unused


def chunks(count: int) -> Iterator[np.ndarray]:
    """Yield the indices 0 … count − 1 as int64 [n], n at most `CHUNK_TOKENS`."""
    for start in range(0, count, CHUNK_TOKENS):
        yield np.arange(start, min(start + CHUNK_TOKENS, count))


def scores(probabilities: np.ndarray) -> bytes:
    """Return probabilities [layers, experts] as the uint8 scores of a `StepPrediction`.

    255 is certain; NaN counts as 0.
    """
    bounded = np.clip(np.nan_to_num(probabilities, nan=0.0), 0.0, 1.0)
    return np.rint(bounded * 255).astype(np.uint8).tobytes()
