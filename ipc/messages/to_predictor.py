"""Messages to the predictor: coming steps from the scheduler, actual routing from the loader."""

from __future__ import annotations

import msgspec

from .base import Message
from .to_loader import StepRouting


class PredictStep(Message, frozen=True, kw_only=True):
    """Ask for a prediction of step `step`. `token_ids`, `rows` and `positions` have one entry a token of the step."""

    step: int
    token_ids: list[int]
    rows: list[int]
    positions: list[int]
    sources: int = 0
    """The first `sources` tokens go through the encoder, and no other token does; the others have positions of their
    own."""


class PredictRows(Message, frozen=True, kw_only=True):
    """Ask for the routing of these tokens, one for each row that decodes next; the answer is `RowPredictions`.

    `number` identifies the answer. A late answer is useless.
    """

    number: int
    token_ids: list[int]
    rows: list[int]
    positions: list[int]


PredictorFromScheduler = PredictStep | PredictRows
PREDICTOR_FROM_SCHEDULER: msgspec.msgpack.Decoder[PredictorFromScheduler] = msgspec.msgpack.Decoder(
    PredictorFromScheduler
)

PredictorFromLoader = StepRouting
PREDICTOR_FROM_LOADER: msgspec.msgpack.Decoder[PredictorFromLoader] = msgspec.msgpack.Decoder(PredictorFromLoader)
