"""Messages to the loader: misses, hints and releases from compute, predictions from the predictor."""

from __future__ import annotations

import msgspec

from .base import Message


class Miss(Message, frozen=True):
    """Compute waits for these experts of `layer` in step `step`: all that are still missing (R4).

    `found` are the hits since the last `Miss`: keys (layer * experts + expert) that were resident when their layers
    began. Hits have no message of their own, but a policy must know them before it chooses a victim.
    """

    step: int
    layer: int
    experts: list[int]
    found: list[int] = []


class Hint(Message, frozen=True):
    """Compute's prediction for the next layer, `layer` (R5).

    `scores`: uint8 [experts], 0 where no token is expected, 255 where the expert is the first choice of a token.
    """

    step: int
    layer: int
    scores: bytes


class Released(Message, frozen=True):
    """These slots belong to the loader again; nothing reads them now (R1, I3). `step`, `layer`: compute's position."""

    slots: list[int]
    step: int
    layer: int


class CopiesDone(Message, frozen=True):
    """The copies `numbers` (`Copy.number`) have ended: nothing reads their places in the host store any more."""

    numbers: list[int]


class StepRouting(Message, frozen=True, kw_only=True):
    """The routing of a whole step, without padding (R2).

    `experts` is uint16 [tokens, layers, top_k] in row-major order; `token_ids`, `rows` and `positions` have one
    entry a token. A layer that takes fewer experts than others repeats its first.
    """

    step: int
    token_ids: list[int]
    rows: list[int]
    positions: list[int]
    top_k: int
    experts: bytes
    hits: int
    misses: int
    stall_ns: int
    sources: int = 0
    """The first `sources` tokens went through the encoder and no decoder layer; the others went through the decoder."""


class ResidentTable(Message, frozen=True):
    """First message of compute to a loader of a new epoch (R9): slot -> its (layer, expert); `need`: the open miss."""

    slots: dict[int, tuple[int, int]]
    need: Miss | None = None


LoaderFromCompute = Miss | Hint | Released | CopiesDone | StepRouting | ResidentTable
LOADER_FROM_COMPUTE: msgspec.msgpack.Decoder[LoaderFromCompute] = msgspec.msgpack.Decoder(LoaderFromCompute)


class StepPrediction(Message, frozen=True):
    """Prediction for step `step` (R5). `scores`: uint8 [layers, experts], 255 = certain."""

    step: int
    scores: bytes


LoaderFromPredictor = StepPrediction
LOADER_FROM_PREDICTOR: msgspec.msgpack.Decoder[LoaderFromPredictor] = msgspec.msgpack.Decoder(LoaderFromPredictor)
