"""What a caller hands in, checked before an engine hears of it."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from ...errors import ExpertFlowError, RequestError, UsageError, error_from_code
from ...ipc.messages import ErrorFacts, Sampling, Welcome
from ...workers.scheduler.validation import SEED_LIMIT, ending_error, prompt_error, sampling_error
from .images import ImagePrompt
from .text import TextCodec

MAX_DEADLINE_S = 10**9
Prompt = str | Sequence[int] | ImagePrompt


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What all requests of one `submit` share."""

    max_new_tokens: int
    sampling: Sampling
    seeded: bool
    eos_ids: list[int] | None
    deadline_ms: int | None

    def sampling_of(self, index: int) -> Sampling:
        """A seed for each request: equal prompts must not get equal samples. Without a given seed, a drawn one."""
        seed = (self.sampling.seed + index) % SEED_LIMIT if self.seeded else secrets.randbelow(SEED_LIMIT)
        return msgspec.structs.replace(self.sampling, seed=seed)


def read_wishes(
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    eos_ids: Iterable[int] | None,
    deadline_s: float | None,
    first_token: int | None = None,
) -> RequestOptions:
    """Raises RequestError for what no engine could do."""
    sampling = Sampling(
        _number(temperature, "temperature"),
        _integer(top_k, "top_k"),
        _number(top_p, "top_p"),
        0 if seed is None else _integer(seed, "seed"),
        None if first_token is None else _integer(first_token, "first_token"),
    )
    limit = _integer(max_new_tokens, "max_new_tokens")
    deadline_ms = None if deadline_s is None else _milliseconds(deadline_s)
    raise_if_wrong(sampling_error(sampling) or ending_error(limit, deadline_ms))
    stops = None if eos_ids is None else [_integer(each, "eos_ids") for each in eos_ids]
    return RequestOptions(limit, sampling, seed is not None, stops, deadline_ms)


def read_prompt(prompt: str | Sequence[int], codec: TextCodec, model: Welcome) -> list[int]:
    """Ids of one prompt. Raises UsageError or RequestError if it cannot be run."""
    ids = codec.encode(prompt) if isinstance(prompt, str) else _ids(prompt)
    raise_if_wrong(prompt_error(ids, model.vocabulary, model.context))
    return ids


def read_prompts(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Raises UsageError for a lone text, which would pass for a list of its letters."""
    if isinstance(prompts, (str, bytes)):
        raise UsageError("prompts must be a list", "prompts", "For a single prompt write [prompt]")
    return list(prompts)


def raise_if_wrong(facts: ErrorFacts | None) -> None:
    if facts is not None:
        raise typed_error(facts)


def typed_error(facts: ErrorFacts) -> ExpertFlowError:
    return error_from_code(facts.code, facts.what, facts.where, facts.remedy)


def _ids(prompt: Sequence[int]) -> list[int]:
    try:
        return [_integer(token, "prompt") for token in prompt]
    except TypeError as error:
        remedy = "A prompt is a text or a list of token ids; for a single prompt of ids write [[5, 9, 11]]"
        raise RequestError(f"cannot be a {type(prompt).__name__}", "prompt", remedy) from error


def _integer(value: int, where: str) -> int:
    """An int, or something that stands for one (a numpy integer); a bool is a mistake."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise RequestError(f"must be a whole number, not {value!r}", where, "Give an int")
    number = value if type(value) is int else operator.index(value)
    if not -(2**63) <= number < 2**63:
        raise RequestError(f"does not fit 64 bits: {number}", where, "Give a smaller number")
    return number


def _number(value: float, where: str) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise RequestError(f"must be a number, not {value!r}", where, "Give a float")
    return float(value)


def _milliseconds(deadline_s: float) -> int:
    seconds = _number(deadline_s, "deadline_s")
    if not 0 < seconds <= MAX_DEADLINE_S:
        what = f"must be seconds, above 0 and at most {MAX_DEADLINE_S:,}, not {seconds}"
        raise RequestError(what, "deadline_s", "Leave it out to wait on")
    return max(1, round(seconds * 1000))
