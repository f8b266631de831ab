"""What the scheduler receives: from clients, from compute, from the predictor."""

from __future__ import annotations

import msgspec

from .base import ErrorFacts, Message, Sampling


class Hello(Message, frozen=True):
    """A client asks what it talks to; the answer is `Welcome`."""


class Submit(Message, frozen=True, kw_only=True):
    """One request. Sent again with the same id (after a reconnect) it is not run twice: what is known is sent again."""

    request_id: str
    prompt_ids: list[int]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    eos_ids: list[int] | None = None
    """None: the model's own; an empty list: none."""
    deadline_ms: int | None = None
    """Counted from acceptance; past it the request ends with finish reason `deadline`."""
    resume_ids: list[int] = []
    """Output that an earlier scheduler delivered before it died: it counts as generated and is not made again (I4)."""
    attachment: str = ""
    """Name of the file with the prompt's images; it stays until the request has ended."""


class Cancel(Message, frozen=True):
    """End a request between two steps; it finishes with reason `cancelled` and the tokens it has."""

    request_id: str


FromClient = Hello | Submit | Cancel
FROM_CLIENT: msgspec.msgpack.Decoder[FromClient] = msgspec.msgpack.Decoder(FromClient)


class StepSize(msgspec.Struct, frozen=True):
    """How large a step may be."""

    rows: int
    positions: int
    """Padded: as many in each row."""


class Stepped(Message, frozen=True, kw_only=True):
    """A step is done. `tokens[i]` is the next token of row `rows[i]`; `failed` rows have left the unit."""

    number: int
    unit: int
    rows: list[int]
    tokens: list[int]
    failed: dict[int, ErrorFacts] = {}
    busy_ns: int
    stall_ns: int
    kv_bytes: int
    experts: int = 0
    """Distinct experts that the step ran, summed over its layers."""
    moved_ns: int = 0
    """Of rows that left, joined or parted before the forward; part of `busy_ns` for all but a Split."""
    at_most: StepSize | None = None
    """The step did not fit the memory of the device and was run in parts: what to try at most from now on."""
    digest: bytes = b""
    """Of the logits of this step (only when recording)."""


FromCompute = Stepped
FROM_COMPUTE: msgspec.msgpack.Decoder[FromCompute] = msgspec.msgpack.Decoder(FromCompute)


class RowPredictions(Message, frozen=True):
    """How the rows of a `PredictRows` will probably be routed: uint8 scores [rows, layers, experts], 255 is certain."""

    number: int
    rows: list[int]
    scores: bytes


FromPredictor = RowPredictions
FROM_PREDICTOR: msgspec.msgpack.Decoder[FromPredictor] = msgspec.msgpack.Decoder(FromPredictor)
