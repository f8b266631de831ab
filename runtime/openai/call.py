"""A body that was read: the requests it asks for, and how their results become an answer or a stream."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ...errors import ExpertFlowError
from ...ipc.messages import TokenLogprob
from ...workers.scheduler.validation import prompt_error
from ..client.completions import Completion, Event
from ..client.options import Request
from .answers import encode_routes
from .bodies import SamplingBody, StreamOptions
from .errors import ApiError, refuse, to_api_error
from .logprobs import finite
from .model import ServedModel
from .usage import Usage, make_usage

MAX_TOKEN_LETTERS = 256
"""No token of a vocabulary is longer. A longer text is refused before it is tokenised."""


class ChunkWriter(ABC):
    """Makes the server-sent events of a stream."""

    @abstractmethod
    def on_event(self, event: Event) -> list[bytes]:
        """Return what to send for new tokens of a request."""

    @abstractmethod
    def end(self, completions: Sequence[Completion]) -> list[bytes]:
        """Return what to send when all requests have ended."""


class Call(ABC):
    """A body that was read. `names`: option of a request -> field of this body, for errors of the engine."""

    names: dict[str, str] = {}

    def __init__(self, prefix: str, model: ServedModel, body_model: str | None, ignored: list[str]) -> None:
        self.model = model
        self.model_name = model.require(body_model)
        self.ignored = ignored
        self.id = f"{prefix}{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.requests: list[Request] = []
        self.choices = 1
        """Requests of each prompt, one behind the other."""
        self.stream = False

    @abstractmethod
    def answer(self, completions: Sequence[Completion]) -> msgspec.Struct:
        """Return the answer, given the completions of `requests` in their order."""

    @abstractmethod
    def writer(self) -> ChunkWriter:
        """Return a writer for a stream."""

    def error(self, error: ExpertFlowError) -> ApiError:
        """Return the error of a request in the words of this body."""
        return to_api_error(error, self.names)


class StreamUsage:
    """The usage in the chunks of a stream: left out, or null and at last whole, or as far as it is known."""

    def __init__(self, options: StreamOptions | None) -> None:
        self.included = bool(options and (options.include_usage or options.continuous_usage_stats))
        self._continuous = bool(options and options.continuous_usage_stats)

    def so_far(self, prompt: int, output: int) -> Usage | None | UnsetType:
        """Return the field `usage` of a chunk."""
        if not self.included:
            return UNSET
        return make_usage(prompt, output) if self._continuous else None


def check_stream(body: SamplingBody) -> bool:
    """Return whether to stream. Raises ApiError for options that make no sense together."""
    if body.stream_options is not None and not body.stream:
        raise refuse("stream_options needs stream: true", param="stream_options")
    if body.stream and body.return_routed_experts:
        raise refuse("return_routed_experts needs stream: false", param="return_routed_experts")
    return bool(body.stream)


def check_ids(ids: list[int], model: ServedModel, param: str) -> list[int]:
    """Return ids that the model can read. Raises ApiError."""
    limit = model.facts.context
    if len(ids) > limit:
        raise too_long(f"{len(ids)} tokens", model, param)
    fault = prompt_error(ids, model.facts.vocabulary, limit)
    if fault is not None:
        raise to_api_error(fault.to_error(), {"prompt": param})
    return ids


def check_text(text: str, model: ServedModel, param: str) -> str:
    """Return a text that may fit the context. Raises ApiError for one that cannot, whatever its tokens are."""
    if len(text) > model.facts.context * MAX_TOKEN_LETTERS:
        raise too_long(f"{len(text)} letters", model, param)
    return text


def too_long(size: str, model: ServedModel, param: str) -> ApiError:
    """Return the error for a prompt that does not fit the context."""
    what = f"This model's maximum context length is {model.facts.context} tokens, the prompt has {size}"
    return refuse(what, param=param, code="context_length_exceeded")


def prompt_logprobs_of(completion: Completion, model: ServedModel) -> list[dict[str, Any] | None] | UnsetType:
    """Return vLLM's `prompt_logprobs`: for each token, id -> its log probability, rank and text."""
    listed = completion.prompt_logprobs
    if listed is None:
        return UNSET
    return [None if entry is None else _prompt_logprob(entry, model) for entry in listed]


def _prompt_logprob(entry: TokenLogprob, model: ServedModel) -> dict[str, Any]:
    likeliest = [(token, logprob, rank) for rank, (token, logprob) in enumerate(entry.top, 1)]
    return {
        str(token): {
            "logprob": finite(logprob),
            "rank": rank,
            "decoded_token": model.codec.decode([token], special_tokens=True),
        }
        for token, logprob, rank in [*likeliest, (entry.token_id, entry.logprob, entry.rank)]
    }


def routes_of(completion: Completion, body: SamplingBody) -> str | UnsetType:
    """Return `routed_experts` of a choice, if the body asks for them."""
    return encode_routes(completion, body.routed_experts_prompt_start or 0) if body.return_routed_experts else UNSET
