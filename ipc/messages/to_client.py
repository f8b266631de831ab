"""Messages to a client, from the scheduler."""

from __future__ import annotations

import msgspec

from .base import ErrorFacts, Message, RoutedExperts, TokenLogprob


class Welcome(Message, frozen=True, kw_only=True):
    """Facts of the engine: the folder with the tokenizer and the limits of a prompt."""

    model: str
    vocabulary: int
    context: int
    eos_ids: list[int]
    queue_limit: int
    batch_size: int = 1
    """Number of requests that run at the same time."""


class Accepted(Message, frozen=True):
    """The request is recorded and will end in exactly one `Finished` or `Refused`."""

    request_id: str


class Tokens(Message, frozen=True):
    """Newly generated ids; the first one is at output position `offset`."""

    request_id: str
    offset: int
    token_ids: list[int]
    logprobs: list[TokenLogprob] = []
    """Logprobs of the last `len(logprobs)` of these ids, if asked for. A restarted scheduler does not know those of
    `Submit.resume_ids`."""


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Times of one request, in nanoseconds from acceptance."""

    queued_ns: int
    first_token_ns: int
    total_ns: int
    recomputed: int = 0
    """Number of times that the sequence was computed again because a process died."""


class Finished(Message, frozen=True, kw_only=True):
    """The end of a request: `finish_reason` is `stop`, `length`, `cancelled` or `deadline`."""

    request_id: str
    token_ids: list[int]
    finish_reason: str
    timings: Timings
    logprobs: list[TokenLogprob] = []
    """Logprobs of the last `len(logprobs)` of the ids, as in `Tokens`."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """One entry a token of the prompt, the first is None; None if not asked for, or if the prompt never ran."""
    routed_experts: RoutedExperts | None = None
    cached_tokens: int = 0
    """Tokens of the prompt that were not computed, since another row had computed them (`prefix_cache`)."""


class Refused(Message, frozen=True):
    """The end of a request that was not accepted or failed; `request_id` is empty if the message could not be read."""

    request_id: str
    error: ErrorFacts


ToClient = Welcome | Accepted | Tokens | Finished | Refused
TO_CLIENT: msgspec.msgpack.Decoder[ToClient] = msgspec.msgpack.Decoder(ToClient)
