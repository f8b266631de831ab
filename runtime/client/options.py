"""Prompts and options of a call, checked before an engine receives them."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Any, TypedDict, Unpack

from msgspec import UNSET, UnsetType

from ...errors import RequestError, UsageError
from ...ipc.messages import ErrorFacts, Sampling, Welcome
from ...workers.scheduler.validation import SEED_LIMIT, ending_error, prompt_error, sampling_error
from ..text.codec import TextCodec
from .images import ImagePrompt

MAX_DEADLINE_S = 10**9
Prompt = str | Sequence[int] | ImagePrompt


class OptionNames(TypedDict, total=False):
    """Keywords of `generate` and `submit`; defaults are those of `RequestOptions`."""

    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    eos_ids: Iterable[int] | None
    deadline_s: float | None
    first_token: int | None
    batch_invariant: bool | None
    wait_when_busy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """Checked options of requests, made by `read_options`."""

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    eos_ids: Iterable[int] | None = None
    deadline_s: float | None = None
    first_token: int | None = None
    batch_invariant: bool | None = None
    wait_when_busy: bool = True

    @property
    def deadline_ms(self) -> int | None:
        """Return the deadline in whole milliseconds, at least 1."""
        return None if self.deadline_s is None else max(1, round(self.deadline_s * 1000))

    def sampling(self) -> Sampling:
        """Return the sampling of a request; without a seed one is drawn."""
        seed = secrets.randbelow(SEED_LIMIT) if self.seed is None else self.seed
        return Sampling(self.temperature, self.top_k, self.top_p, seed, self.first_token)


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
    seed: int | None | UnsetType = UNSET
    eos_ids: Iterable[int] | None | UnsetType = UNSET
    deadline_s: float | None | UnsetType = UNSET
    first_token: int | None | UnsetType = UNSET
    batch_invariant: bool | None | UnsetType = UNSET
    wait_when_busy: bool | UnsetType = UNSET


def read_options(max_new_tokens: int = 32, **options: Unpack[OptionNames]) -> RequestOptions:
    """Return checked options. Raises RequestError for a value that no engine accepts."""
    return _check(RequestOptions(max_new_tokens=max_new_tokens, **options))


def read_request(prompt: Prompt | Request, options: RequestOptions, index: int) -> tuple[Prompt, RequestOptions]:
    """Return prompt `index` of a batch with its options, those of the call unless it is a `Request` with its own.

    A seed of the call becomes seed + index, because equal prompts must not get equal samples. Raises RequestError for
    an option of the request that no engine accepts.
    """
    shared = options if options.seed is None else replace(options, seed=(options.seed + index) % SEED_LIMIT)
    if not isinstance(prompt, Request):
        return prompt, shared
    own = {field.name: getattr(prompt, field.name) for field in fields(RequestOptions)}
    own = {name: value for name, value in own.items() if value is not UNSET}
    return prompt.prompt, _check(replace(shared, **own))


def require_timeout(timeout_s: float | None, name: str) -> None:
    """Raise UsageError unless the value is None (no limit) or seconds from 0 to `MAX_DEADLINE_S`."""
    if timeout_s is None:
        return
    if isinstance(timeout_s, bool) or not hasattr(timeout_s, "__float__") or not 0 <= timeout_s <= MAX_DEADLINE_S:
        what = f"must be seconds, from 0 to {MAX_DEADLINE_S:,}, not {timeout_s!r}"
        raise UsageError(what, name, "None waits without a limit")


def read_prompt(prompt: str | Sequence[int], codec: TextCodec, model: Welcome) -> list[int]:
    """Return the ids of a text or of ids. Raises UsageError or RequestError if the prompt cannot be run."""
    ids = codec.encode(prompt) if isinstance(prompt, str) else _ids(prompt)
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


def _check(options: RequestOptions) -> RequestOptions:
    """Return the options as plain Python numbers. Raises RequestError for a wrong one."""
    options = replace(
        options,
        max_new_tokens=_integer(options.max_new_tokens, "max_new_tokens"),
        temperature=_number(options.temperature, "temperature"),
        top_k=_integer(options.top_k, "top_k"),
        top_p=_number(options.top_p, "top_p"),
        seed=_optional(options.seed, "seed"),
        eos_ids=None if options.eos_ids is None else _eos_ids(options.eos_ids),
        deadline_s=None if options.deadline_s is None else _seconds(options.deadline_s),
        first_token=_optional(options.first_token, "first_token"),
        batch_invariant=_choice(options.batch_invariant, "batch_invariant"),
    )
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed or 0, options.first_token)
    raise_if_wrong(sampling_error(sampling) or ending_error(options.max_new_tokens, options.deadline_ms))
    return options


def _ids(prompt: Sequence[int]) -> list[int]:
    if isinstance(prompt, (bytes, bytearray, memoryview)):  # iterates as integers
        raise RequestError(f"cannot be {type(prompt).__name__}", "prompt", "Decode a text: prompt.decode()")
    try:
        return [_integer(token, "prompt") for token in prompt]
    except TypeError as error:
        remedy = "A prompt is a text or a list of token ids; for a single prompt of ids write [[5, 9, 11]]"
        raise RequestError(f"cannot be {type(prompt).__name__}", "prompt", remedy) from error


def _optional(value: int | None, where: str) -> int | None:
    return None if value is None else _integer(value, where)


def _choice(value: Any, where: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise RequestError(f"must be True, False or None, not {value!r}", where, "None takes the engine's own setting")


def _eos_ids(eos_ids: Iterable[int]) -> list[int]:
    remedy = "Give token ids, or an empty list to never stop at one"
    if isinstance(eos_ids, (str, bytes)) or not isinstance(eos_ids, Iterable):
        raise RequestError(f"must be a list of token ids, not {eos_ids!r}", "eos_ids", remedy)
    ids = [_integer(token, "eos_ids") for token in eos_ids]
    if negative := [token for token in ids if token < 0]:
        raise RequestError(f"has {negative[0]}, which is not a token id", "eos_ids", remedy)
    return ids


def _integer(value: Any, where: str) -> int:
    """Return the value as an int; numpy integers count, a bool is refused. Raises RequestError."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise RequestError(f"must be a whole number, not {value!r}", where, "Give an int")
    number = value if type(value) is int else operator.index(value)
    if not -(2**63) <= number < 2**63:
        raise RequestError(f"does not fit 64 bits: {number}", where, "Give a smaller number")
    return number


def _number(value: Any, where: str) -> float:
    """Return the value as a float; a bool is refused. Raises RequestError."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise RequestError(f"must be a number, not {value!r}", where, "Give a float")
    return float(value)


def _seconds(deadline_s: Any) -> float:
    seconds = _number(deadline_s, "deadline_s")
    if not 0 < seconds <= MAX_DEADLINE_S:
        what = f"must be seconds, above 0 and at most {MAX_DEADLINE_S:,}, not {seconds}"
        raise RequestError(what, "deadline_s", "Leave it out for no deadline")
    return seconds
