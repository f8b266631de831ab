"""Messages to the scheduler: from clients, from compute, from the predictor."""

from __future__ import annotations

import msgspec

from .base import NO_DETAILS, Details, ErrorFacts, Message, Sampling, TokenLogprob


class Hello(Message, frozen=True):
    """A client asks for the facts of the engine; the answer is `Welcome`."""


class Submit(Message, frozen=True, kw_only=True):
    """One request. A known id (after a reconnect) is not run twice: its output so far is sent again."""

    request_id: str
    prompt_ids: list[int]
    max_new_tokens: int
    """0: no output, for a request that asks about its prompt (`details`)."""
    sampling: Sampling = Sampling()
    eos_ids: list[int] | None = None
    """None: the model's own; an empty list: none."""
    stop_ids: list[int] = []
    """Ids that end the output besides `eos_ids`."""
    deadline_ms: int | None = None
    """Milliseconds from acceptance; then the request ends with finish reason `deadline`."""
    resume_ids: list[int] = []
    """Output that a dead scheduler has delivered: it counts as generated and is not generated again (I4)."""
    attachment: str = ""
    """Name of the file with the prompt's images; the file stays until the request has ended."""
    batch_invariant: bool | None = None
    """Let the result depend on no other request (I1d). None: as the engine is configured."""
    priority: int = 0
    """A request with a lower number starts first; clients take turns among requests of the same."""
    user: str = ""
    """Whom the client sends it for: users of one connection take turns as connections do."""
    details: Details = NO_DETAILS
    domain: str = ""
    """A label of the prompt's kind, which a cluster's router learns from; an engine ignores it."""
    origin: str = ""
    """Name of the client's session, which no other has."""
    attempt: int = 0
    """Number of times that the session had to connect again. What a lost connection still carried may arrive after
    what the next one brought: of one origin, an earlier attempt changes nothing."""

    def is_late(self, origin: str, attempt: int) -> bool:
        """Return whether the same request came already by a later attempt of the same origin."""
        return self.origin == origin and self.attempt < attempt


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


class RowDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """Details that a step found out about a row, as far as its request asks."""

    logprob: TokenLogprob | None = None
    """That of the row's new token."""
    prompt_logprobs: list[TokenLogprob] = []
    """Those of the prompt's tokens from `prompt_start` on: what the positions before them say of them."""
    prompt_start: int = 1
    routes: bytes = b""
    """Experts of the positions that the step computed: uint16 [positions, layers, top_k]."""
    routes_start: int = 0
    """The first of these positions. A row that is computed again begins at 0 again."""
    top_k: int = 0


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
    misses: int = 0
    """Number of those that were not there when their layer began."""
    moved_ns: int = 0
    """Time for rows that left, joined or split before the forward pass; part of `busy_ns` except for a `Split`."""
    at_most: StepSize | None = None
    """Limit for coming steps: this step did not fit the memory of the device and was run in parts."""
    digest: bytes = b""
    """Digest of the logits of this step (only when recording)."""
    details: dict[int, RowDetails] = {}
    """By row, for rows whose request asked for details."""


FromCompute = Stepped
FROM_COMPUTE: msgspec.msgpack.Decoder[FromCompute] = msgspec.msgpack.Decoder(FromCompute)


class RowPredictions(Message, frozen=True):
    """Predicted routing of the rows of a `PredictRows`. `scores`: uint8 [rows, layers, experts], 255 = certain."""

    number: int
    rows: list[int]
    scores: bytes


FromPredictor = RowPredictions
FROM_PREDICTOR: msgspec.msgpack.Decoder[FromPredictor] = msgspec.msgpack.Decoder(FromPredictor)
