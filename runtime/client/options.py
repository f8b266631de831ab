"""Prompts and options of a call, checked before an engine receives them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, TypedDict, Unpack

from msgspec import UNSET, UnsetType

from ...errors import UsageError
from ...ipc.messages import Details, ErrorFacts, Sampling, Welcome
from ...workers.scheduler.validation import (
    SEED_LIMIT,
    details_error,
    ending_error,
    prompt_error,
    request_error,
    sampling_error,
)
from ..text.codec import TextCodec
from ..text.stop_strings import StopRule
from ..text.structured import Grammar, Structured, read_structured
from .images import ImagePrompt
from .option_values import (
    MAX_DEADLINE_S,
    read_count,
    read_flag,
    read_integer,
    read_logit_bias,
    read_number,
    read_optional_flag,
    read_optional_ids,
    read_optional_integer,
    read_optional_number,
    read_prompt_ids,
    read_seconds,
    read_stop,
    read_token_ids,
    read_user,
)

Prompt = str | Sequence[int] | ImagePrompt


class OptionNames(TypedDict, total=False):
    """Keywords of `generate` and `submit`; defaults are those of `RequestOptions`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    repetition_penalty: float | None
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    eos_ids: Iterable[int] | None
    stop_ids: Iterable[int]
    stop: Iterable[str]
    include_stop: bool
    min_new_tokens: int | None
    deadline_s: float | None
    first_token: int | None
    logprobs: int | None
    prompt_logprobs: int | None
    routed_experts: bool
    priority: int
    user: str
    domain: str
    n: int
    structured: Structured | Grammar | None
    skip_special_tokens: bool
    batch_invariant: bool | None
    wait_when_busy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """Checked options of requests, made by `read_options`."""

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    eos_ids: Iterable[int] | None = None
    stop_ids: Iterable[int] = ()
    stop: Iterable[str] = ()
    include_stop: bool = False
    min_new_tokens: int | None = None
    deadline_s: float | None = None
    first_token: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    routed_experts: bool = False
    priority: int = 0
    user: str = ""
    domain: str = ""
    n: int = 1
    structured: Structured | Grammar | None = None
    skip_special_tokens: bool = True
    batch_invariant: bool | None = None
    wait_when_busy: bool = True

    @property
    def deadline_ms(self) -> int | None:
        """Return the deadline in whole milliseconds, at least 1."""
        return None if self.deadline_s is None else max(1, round(self.deadline_s * 1000))

    @property
    def details(self) -> Details:
        """Return what is asked besides tokens."""
        return Details(self.logprobs, self.prompt_logprobs, self.routed_experts)

    @property
    def stop_rule(self) -> StopRule:
        """Return the stop strings."""
        return StopRule(tuple(self.stop), self.include_stop, self.min_new_tokens or 0)

    def with_seed(self, offset: int) -> RequestOptions:
        """Return the options of another sample: the same with a seed that is higher by `offset`, if one is given."""
        return self if self.seed is None else replace(self, seed=(self.seed + offset) % SEED_LIMIT)

    def sampling(self) -> Sampling:
        """Return the sampling of a request; without a seed one is drawn."""
        return self._sampling(secrets.randbelow(SEED_LIMIT) if self.seed is None else self.seed)

    def error(self) -> ErrorFacts | None:
        """Return the first value that no engine accepts, or None."""
        sampling, details = self._sampling(self.seed or 0), self.details
        ending = ending_error(self.max_new_tokens, self.min_new_tokens, self.deadline_ms, details)
        return sampling_error(sampling) or ending or details_error(details) or self._form_error()

    def _form_error(self) -> ErrorFacts | None:
        """Return an error if an output of this form could never end, or None."""
        if self.structured is None or self.eos_ids is None or [*self.eos_ids, *self.stop_ids]:
            return None
        what, remedy = "needs an id that ends the output", "Leave eos_ids out"
        return request_error(what, "structured", remedy)

    def _sampling(self, seed: int) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=seed,
            first_token=self.first_token,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=dict(self.logit_bias),
            min_new_tokens=self.min_new_tokens,
            grammar=str(self.structured) if isinstance(self.structured, Grammar) else "",
        )


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt with options of its own; the call of `generate` or `submit` gives the others.

    `seed` is used unchanged, whatever the index of the request in the batch.
    """

    prompt: Prompt
    _: KW_ONLY
    max_new_tokens: int | UnsetType = UNSET
    temperature: float | UnsetType = UNSET
    top_k: int | UnsetType = UNSET
    top_p: float | UnsetType = UNSET
    min_p: float | UnsetType = UNSET
    seed: int | None | UnsetType = UNSET
    repetition_penalty: float | None | UnsetType = UNSET
    presence_penalty: float | UnsetType = UNSET
    frequency_penalty: float | UnsetType = UNSET
    logit_bias: Mapping[int, float] | UnsetType = UNSET
    eos_ids: Iterable[int] | None | UnsetType = UNSET
    stop_ids: Iterable[int] | UnsetType = UNSET
    stop: Iterable[str] | UnsetType = UNSET
    include_stop: bool | UnsetType = UNSET
    min_new_tokens: int | None | UnsetType = UNSET
    deadline_s: float | None | UnsetType = UNSET
    first_token: int | None | UnsetType = UNSET
    logprobs: int | None | UnsetType = UNSET
    prompt_logprobs: int | None | UnsetType = UNSET
    routed_experts: bool | UnsetType = UNSET
    priority: int | UnsetType = UNSET
    user: str | UnsetType = UNSET
    domain: str | UnsetType = UNSET
    n: int | UnsetType = UNSET
    structured: Structured | Grammar | None | UnsetType = UNSET
    skip_special_tokens: bool | UnsetType = UNSET
    batch_invariant: bool | None | UnsetType = UNSET
    wait_when_busy: bool | UnsetType = UNSET


def read_options(max_new_tokens: int = 32, **options: Unpack[OptionNames]) -> RequestOptions:
    """Return checked options. Raises RequestError for a value that no engine accepts."""
    given = RequestOptions(max_new_tokens=max_new_tokens, **options)
    return _with_checked(given, {"max_new_tokens": max_new_tokens, **options})


def read_request(prompt: Prompt | Request, options: RequestOptions, index: int) -> tuple[Prompt, RequestOptions]:
    """Return a prompt whose first output is `index` of a batch, with its options: those of the call, or its own.

    A seed of the call becomes seed + index, because equal prompts must not get equal samples. Raises RequestError for
    an option of the request that no engine accepts.
    """
    shared = options.with_seed(index)
    if not isinstance(prompt, Request):
        return prompt, shared
    own = {name: value for name in _READERS if (value := getattr(prompt, name)) is not UNSET}
    return prompt.prompt, _with_checked(shared, own)


def require_timeout(timeout_s: float | None, name: str) -> None:
    """Raise UsageError unless the value is None (no limit) or seconds from 0 to `MAX_DEADLINE_S`."""
    if timeout_s is None:
        return
    if isinstance(timeout_s, bool) or not hasattr(timeout_s, "__float__") or not 0 <= timeout_s <= MAX_DEADLINE_S:
        what = f"must be seconds, from 0 to {MAX_DEADLINE_S:,}, not {timeout_s!r}"
        raise UsageError(what, name, "None waits without a limit")


def read_prompt(prompt: str | Sequence[int], codec: TextCodec, model: Welcome) -> list[int]:
    """Return the ids of a text or of ids. Raises UsageError or RequestError if the prompt cannot be run."""
    ids = codec.encode(prompt) if isinstance(prompt, str) else read_prompt_ids(prompt)
    raise_if_wrong(prompt_error(ids, model.vocabulary, model.context))
    return ids


def read_prompts(prompts: Iterable[Prompt | Request]) -> list[Prompt | Request]:
    """Return the prompts of a batch. Raises UsageError for a lone text, which would count as a list of letters."""
    if isinstance(prompts, (str, bytes, Request)) or not isinstance(prompts, Iterable):
        what = f"must be a list, not {type(prompts).__name__}"
        raise UsageError(what, "prompts", "For a single prompt write [prompt]")
    return list(prompts)


def raise_if_wrong(facts: ErrorFacts | None) -> None:
    """Raise the error that the facts describe, if any."""
    if facts is not None:
        raise facts.to_error()


def _with_checked(options: RequestOptions, given: Mapping[str, Any]) -> RequestOptions:
    """Return the options with these as plain Python numbers; the others are. Raises RequestError for a wrong one."""
    values = {name: read(given[name], name) for name, read in _READERS.items() if name in given}
    options = replace(options, **values)
    raise_if_wrong(options.error())
    return options


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "max_new_tokens": read_integer,
    "temperature": read_number,
    "top_k": read_integer,
    "top_p": read_number,
    "min_p": read_number,
    "seed": read_optional_integer,
    "repetition_penalty": read_optional_number,
    "presence_penalty": read_number,
    "frequency_penalty": read_number,
    "logit_bias": read_logit_bias,
    "eos_ids": read_optional_ids,
    "stop_ids": read_token_ids,
    "stop": read_stop,
    "include_stop": read_flag,
    "min_new_tokens": read_optional_integer,
    "deadline_s": read_seconds,
    "first_token": read_optional_integer,
    "logprobs": read_optional_integer,
    "prompt_logprobs": read_optional_integer,
    "routed_experts": read_flag,
    "priority": read_integer,
    "user": read_user,
    "domain": read_user,
    "n": read_count,
    "structured": read_structured,
    "skip_special_tokens": read_flag,
    "batch_invariant": read_optional_flag,
}
"""Option -> what makes a plain value of it, or raises RequestError."""
