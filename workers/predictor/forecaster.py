"""What a predictor is: tokens in, probabilities of experts out; and which one a configuration asks for."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ...configs.schema import Config
from ...ipc.messages import Forecast, Used


class Forecaster(Protocol):
    """Forecasts the routing of a step before it runs. Wrong forecasts cost time, never values (I2)."""

    def forecast(self, coming: Forecast) -> np.ndarray:
        """float32 [layers, experts]: the probability that at least one token of the step uses the expert."""
        ...

    def routes(self, coming: Forecast) -> np.ndarray:
        """float32 [tokens, layers, experts]: the probability that this token uses the expert."""
        ...

    def learn(self, used: Used) -> None:
        """Takes in how a step was really routed; a malformed message teaches nothing."""
        ...


def scores(probabilities: np.ndarray) -> bytes:
    """Probabilities [layers, experts] as the uint8 scores of a `Plan`: 255 is certain; no number counts as 0."""
    bounded = np.clip(np.nan_to_num(probabilities, nan=0.0), 0.0, 1.0)
    return np.rint(bounded * 255).astype(np.uint8).tobytes()


def make_forecaster(config: Config, layers: int, experts: int, top_k: int) -> Forecaster | None:
    """The predictor that `config.predictor` names, None for `none`.

    Raises UsageError if the oracle's recording is missing or is none.
    """
    from .liars import Noise, Opposite
    from .oracle import Oracle
    from .recording import read_recording
    from .token_table import TokenTable

    match config.predictor:
        case "none":
            return None
        case "table":
            return TokenTable(layers, experts, top_k)
        case "noise":
            return Noise(layers, experts, seed=0)
        case "opposite":
            return Opposite(TokenTable(layers, experts, top_k))
        case "oracle":
            return Oracle(layers, experts, read_recording(config.oracle_routes))
