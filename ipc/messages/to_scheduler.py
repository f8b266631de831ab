"""Messages to the scheduler: from clients, from compute, from the predictor."""

from __future__ import annotations

import msgspec

from .base import ErrorFacts, Message, Sampling


class Hello(Message, frozen=True):
    """A client asks for the facts of the engine; the answer is `Welcome`."""


class Submit(Message, frozen=True, kw_only=True):
    """One request. A known id (after a reconnect) is not run twice: its output so far is sent again."""

    request_id: str
    prompt_ids: list[int]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    eos_ids: list[int] | None = None
    """None: the model's own; an empty list: none."""
    deadline_ms: int | None = None
    """Milliseconds from acceptance; then the request ends with finish reason `deadline`."""
    resume_ids: list[int] = []
    """Output that a dead scheduler has delivered: it counts as generated and is not generated again (I4)."""
    attachment: str = ""
    """Name of the file with the prompt's images; the file stays until the request has ended."""
    batch_invariant: bool | None = None
    """Let the result depend on no other request (I1d). None: as the engine is configured."""


class Cancel(Message, frozen=True):
    """End a request between two steps; it finishes with reason `cancelled` and its tokens so far."""

    request_id: str


FromClient = Hello | Submit | Cancel
FROM_CLIENT: msgspec.msgpack.Decoder[FromClient] = msgspec.msgpack.Decoder(FromClient)


class StepSize(msgspec.Struct, frozen=True):
    """Size limit of a step."""

    rows: int
    positions: int
    """Padded positions of each row."""


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
    """Number of distinct experts that the step ran, summed over its layers."""
    moved_ns: int = 0
    """Time for rows that left, joined or split before the forward pass; part of `busy_ns` except for a `Split`."""
    at_most: StepSize | None = None
    """Limit for coming steps: this step did not fit the memory of the device and was run in parts."""
    digest: bytes = b""
    """Digest of the logits of this step (only when recording)."""


FromCompute = Stepped
FROM_COMPUTE: msgspec.msgpack.Decoder[FromCompute] = msgspec.msgpack.Decoder(FromCompute)


class RowPredictions(Message, frozen=True):
    """Predicted routing of the rows of a `PredictRows`. `scores`: uint8 [rows, layers, experts], 255 = certain."""

    number: int
    rows: list[int]
    scores: bytes


FromPredictor = RowPredictions
FROM_PREDICTOR: msgspec.msgpack.Decoder[FromPredictor] = msgspec.msgpack.Decoder(FromPredictor)
