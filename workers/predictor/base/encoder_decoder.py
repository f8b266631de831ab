"""A forecaster for encoder-decoder models, made of one for each stack.

Tokens of one stack do not see the layers of the other. Each stack's forecaster learns from its own tokens alone: a
token id means something else to an encoder than to a decoder.
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
    """Splits each message by stack and joins the answers of the two forecasters."""

    def __init__(
        self, encoder: Forecaster, decoder: Forecaster, encoder_layers: int, layers: int, experts: int
    ) -> None:
        super().__init__(layers, experts)
        self._encoder, self._decoder, self._encoder_layers = encoder, decoder, encoder_layers
        self.follows_rows = decoder.follows_rows

    def parts(self, request: PredictStep) -> Iterator[Part]:
        sources = _source_count(request)
        for indices, part in self._encoder.parts(_select(request, slice(sources))):
            yield indices, self._pad_layers(part, 0)
        for indices, part in self._decoder.parts(_select(request, slice(sources, None))):
            yield indices + sources, self._pad_layers(part, self._encoder_layers)

    def _pad_layers(self, part: np.ndarray, first_layer: int) -> np.ndarray:
        """Return `part` as layers `first_layer` and following of the whole model, 0 in the other layers."""
        whole = np.zeros((len(part), self._layers, self._experts), dtype=np.float32)
        whole[:, first_layer : first_layer + part.shape[1]] = part
        return whole

    def learn(self, routing: StepRouting) -> None:
        if routing.token_ids and read_partial_routing(routing, self._layers, self._experts) is not None:
            self._encoder.learn(own_part(routing, "encoder", self._encoder_layers))
            self._decoder.learn(own_part(routing, "decoder", self._encoder_layers))


def own_parts(recording: Iterable[StepRouting], stack: Stack, encoder_layers: int) -> Iterator[StepRouting]:
    """Yield one stack's part of every message that has tokens."""
    return (own_part(routing, stack, encoder_layers) for routing in recording if routing.token_ids)


def own_part(routing: StepRouting, stack: Stack, encoder_layers: int) -> StepRouting:
    """Return the tokens and the layers of one stack; the sizes of the message must fit."""
    sources = _source_count(routing)
    if stack == "encoder":
        tokens, own_layers = slice(sources), slice(encoder_layers)
    else:
        tokens, own_layers = slice(sources, None), slice(encoder_layers, None)
    routes = np.frombuffer(routing.experts, dtype="<u2").reshape(len(routing.token_ids), -1, routing.top_k)
    return _select(routing, tokens, experts=routes[tokens, own_layers].tobytes())


def _source_count(message: PredictStep | StepRouting) -> int:
    """Return the number of encoder tokens, at most the tokens of the message whatever it states."""
    return min(max(message.sources, 0), len(message.token_ids))


def _select(message: Message, tokens: slice, **changes: Any) -> Message:
    """Return the message with only these tokens, all of one stack."""
    lists = {name: getattr(message, name)[tokens] for name in ("token_ids", "rows", "positions")}
    return msgspec.structs.replace(message, sources=0, **lists, **changes)
