"""A forecaster for the encoder's layers and one for the decoder's: neither stack's tokens see the other's layers.

So each of them is any of the others, and learns from its own tokens alone: a token id means something else to an
encoder than to a decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgspec
import numpy as np

from ....ipc.messages import PredictStep, StepRouting
from ...traces.routing import read_partial_routing
from .forecaster import Forecaster, Part, Stack

Message = TypeVar("Message", PredictStep, StepRouting)


class EncoderDecoderForecaster(Forecaster):
    """Hands to each forecaster what is its own, and puts their answers together."""

    def __init__(
        self, encoder: Forecaster, decoder: Forecaster, encoder_layers: int, layers: int, experts: int
    ) -> None:
        super().__init__(layers, experts)
        self._encoder, self._decoder, self._encoder_layers = encoder, decoder, encoder_layers
        self.follows_rows = decoder.follows_rows

    def parts(self, coming: PredictStep) -> Iterator[Part]:
        sources = _sources(coming)
        for places, part in self._encoder.parts(_cut(coming, slice(sources))):
            yield places, self._widened(part, 0)
        for places, part in self._decoder.parts(_cut(coming, slice(sources, None))):
            yield places + sources, self._widened(part, self._encoder_layers)

    def _widened(self, part: np.ndarray, first_layer: int) -> np.ndarray:
        whole = np.zeros((len(part), self._layers, self._experts), dtype=np.float32)
        whole[:, first_layer : first_layer + part.shape[1]] = part
        return whole

    def learn(self, used: StepRouting) -> None:
        if used.token_ids and read_partial_routing(used, self._layers, self._experts) is not None:
            self._encoder.learn(own_part(used, "encoder", self._encoder_layers))
            self._decoder.learn(own_part(used, "decoder", self._encoder_layers))


def own_parts(recording: Iterable[StepRouting], stack: Stack, encoder_layers: int) -> Iterator[StepRouting]:
    """Of every message that has tokens."""
    return (own_part(used, stack, encoder_layers) for used in recording if used.token_ids)


def own_part(used: StepRouting, stack: Stack, encoder_layers: int) -> StepRouting:
    """The tokens and the layers of one stack, of a message whose sizes fit."""
    sources = _sources(used)
    if stack == "encoder":
        tokens, own_layers = slice(sources), slice(encoder_layers)
    else:
        tokens, own_layers = slice(sources, None), slice(encoder_layers, None)
    routing = np.frombuffer(used.experts, dtype="<u2").reshape(len(used.token_ids), -1, used.top_k)
    return _cut(used, tokens, experts=routing[tokens, own_layers].tobytes())


def _sources(message: PredictStep | StepRouting) -> int:
    """Whatever it says: of its own tokens."""
    return min(max(message.sources, 0), len(message.token_ids))


def _cut(message: Message, tokens: slice, **changes: Any) -> Message:
    lists = {name: getattr(message, name)[tokens] for name in ("token_ids", "rows", "positions")}
    return msgspec.structs.replace(message, sources=0, **lists, **changes)
