"""What the predictor receives: coming steps from the scheduler, actual routing from the loader."""

from __future__ import annotations

import msgspec

from .base import Message
from .to_loader import StepRouting


class PredictStep(Message, frozen=True, kw_only=True):
    """The tokens that step `step` will run: one entry a token in `token_ids`, `rows` and `positions`."""

    step: int
    token_ids: list[int]
    rows: list[int]
    positions: list[int]
    sources: int = 0
    """So many of them, the first, go through an encoder, and no other token does; the others have positions of their
    own."""


class PredictRows(Message, frozen=True, kw_only=True):
    """Ask how these tokens will be routed, one entry a row that decodes next; the answer is `RowPredictions`.

    `number` comes back in the answer and says nothing else. An answer that comes late is of no use to anybody.
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
