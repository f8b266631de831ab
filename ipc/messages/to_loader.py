"""What the loader receives: needs and returns from compute, plans from the predictor."""

from __future__ import annotations

import msgspec

from .base import Message


class Miss(Message, frozen=True):
    """Compute waits for these experts of `layer` in step `step`: all that are still missing (R4).

    `found` are the keys (layer * experts + expert) that were held when their layers began, since the last `Miss`: what
    was found needs no message of its own, and yet a policy must hear of it before it chooses who goes.
    """

    step: int
    layer: int
    experts: list[int]
    found: list[int] = []


class Hint(Message, frozen=True):
    """What compute foresees for `layer`, which is next: uint8 [experts], 0 where no token seems to go, 255 where it is
    the first choice of one (R5)."""

    step: int
    layer: int
    scores: bytes


class Released(Message, frozen=True):
    """These slots are the loader's again; nothing reads them any more (R1, I3). `step`, `layer`: where compute is."""

    slots: list[int]
    step: int
    layer: int


class CopiesDone(Message, frozen=True):
    """These copies (`Copy.number`) have ended: nothing reads their places in the host store any more."""

    numbers: list[int]


class StepRouting(Message, frozen=True, kw_only=True):
    """The routing of a whole step, pads left out (R2).

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
    """So many tokens, the first, went through an encoder and see no layer of the decoder, whose tokens see no other."""


class ResidentTable(Message, frozen=True):
    """First message of compute to a loader of a new epoch: slot -> (layer, expert) it holds, and its open need (R9)."""

    slots: dict[int, tuple[int, int]]
    need: Miss | None = None


LoaderFromCompute = Miss | Hint | Released | CopiesDone | StepRouting | ResidentTable
LOADER_FROM_COMPUTE: msgspec.msgpack.Decoder[LoaderFromCompute] = msgspec.msgpack.Decoder(LoaderFromCompute)


class StepPrediction(Message, frozen=True):
    """Advice for step `step`: uint8 scores [layers, experts], 255 = certain (R5)."""

    step: int
    scores: bytes


LoaderFromPredictor = StepPrediction
LOADER_FROM_PREDICTOR: msgspec.msgpack.Decoder[LoaderFromPredictor] = msgspec.msgpack.Decoder(LoaderFromPredictor)
