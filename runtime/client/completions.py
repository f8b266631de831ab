"""Results of requests: completions, events, and the error of a wait that ran out of time."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ExpertFlowError, RequestError
from ...ipc.messages import Timings


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
    """`stop` (an end-of-sequence id), `length`, `cancelled` or `deadline`."""
    timings: Timings
    request_id: str
    prompt_ids: list[int]


@dataclass(frozen=True, slots=True)
class Event:
    """New tokens of request `index` of a batch. The last event of a request has a `finish_reason` or an `error`."""

    index: int
    token_ids: list[int]
    text_delta: str
    finish_reason: str | None = None
    error: ExpertFlowError | None = None
