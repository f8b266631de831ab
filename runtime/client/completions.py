"""Results of requests: completions, events, and the error of a wait that ran out of time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ...errors import EngineError, ExpertFlowError, RequestError
from ...ipc.messages import RoutedExperts, Timings, TokenLogprob


class NotDoneInTime(RequestError, TimeoutError):
    """`results(timeout_s=…)` ran out of time; the batch still runs and can be awaited again."""

    code = "timeout"


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of one request."""

    token_ids: list[int]
    """Generated ids, with the end-of-sequence token if it was generated."""
    text: str
    """Text without special tokens; empty if the model folder has no tokenizer."""
    finish_reason: str
    """`stop` (an end-of-sequence id, a stop id or a stop string), `length`, `cancelled` or `deadline`."""
    timings: Timings
    request_id: str
    prompt_ids: list[int]
    stop_reason: str | int | None = None
    """The stop string, or the id of `stop_ids`, that ended the output; None for an end-of-sequence id."""
    logprobs: list[TokenLogprob] | None = None
    """One entry for each of `token_ids`; None if not asked for."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """One entry for each of `prompt_ids`, the first is None; None if not asked for, or if the prompt never ran."""
    routed_experts: np.ndarray | None = None
    """Experts of each computed token, uint8 or uint16 [positions, MoE layers, top_k]: the prompt, and the output
    without its last token. None as above."""
    cached_tokens: int = 0
    """Tokens of the prompt that were not computed: another request had begun with them (`prefix_cache`)."""


@dataclass(frozen=True, slots=True)
class Event:
    """New tokens of request `index` of a batch. The last event of a request has a `finish_reason` or an `error`."""

    index: int
    token_ids: list[int]
    text_delta: str
    finish_reason: str | None = None
    error: ExpertFlowError | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """One entry for each of `token_ids` if the request asks for them, else empty."""
    stop_reason: str | int | None = None
    """As in `Completion`, in the last event."""


def read_routes(routes: RoutedExperts | None, positions: int | None = None) -> np.ndarray | None:
    """Return the experts of the first `positions` as an array [positions, MoE layers, top_k] that cannot be written to.

    None: all of them. Raises EngineError if the engine sent bytes of another size than it states.
    """
    if routes is None:
        return None
    try:
        return np.frombuffer(routes.data, dtype=routes.dtype).reshape(routes.shape)[:positions]
    except (ValueError, OverflowError) as error:
        what = f"{len(routes.data)} bytes of routed experts came for a shape of {routes.shape}"
        raise EngineError(what, "engine", "Use the same version here and at the engine") from error
