"""A line's request and its result: bodies are read and answered by `runtime/openai`, the same in every run of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from ...errors import BusyError, EngineError, ExpertFlowError, UsageError
from ...workers.scheduler.validation import SEED_LIMIT
from ..client.completions import Completion
from ..client.options import Request
from ..openai.answers import ChatAnswer, ChatChoice
from ..openai.call import Call
from ..openai.endpoints import prepare_call
from ..openai.errors import ApiError
from ..openai.model import ServedModel
from ..openai.reading import read_json
from .request_line import RequestLine, seed_of
from .result_lines import failure_line, name_of, result_line

Defaults = Mapping[str, Any]
"""Fields of bodies that do not name them."""
NO_DEFAULTS: Defaults = MappingProxyType({})


_OWN_FIELDS = {"prompt", "messages", "stream"}
"""Fields that make no sense for all lines."""


class LineCall(NamedTuple):
    """A line that can run: its requests, and the call that answers it."""

    requests: list[Request]
    call: Call


class Failed(NamedTuple):
    """A line that cannot run, or has failed: an HTTP status and a body in OpenAI's shape."""

    status: int
    body: bytes


def read_call(
    line: RequestLine, model: ServedModel, job: str, created: int, defaults: Defaults = NO_DEFAULTS
) -> LineCall | Failed:
    """Return the requests of a line, or why it is refused. Takes as long as its texts take to become ids.

    Fields that the body does not name are those of `defaults`; a seed that is in neither is derived from the custom_id;
    ids and time of the answer are those of the job.
    """
    try:
        call = prepare_call(line.url, {**defaults, **read_json(line.body)} if defaults else line.body, model)
        if call.stream:
            raise ApiError(400, "stream: results of a batch are whole; leave it out", param="stream")
    except ApiError as error:
        return failed(error)
    call.id, call.created = name_of(call.id.partition("-")[0], job, line.custom_id).replace("_", "-"), created
    return LineCall(seeded(call.requests, line.custom_id), call)


def seeded(requests: Sequence[Request], custom_id: str) -> list[Request]:
    """Return requests that all have a seed, and wait when the engine is busy."""
    first = seed_of(custom_id)
    seeds = [(first + index) % SEED_LIMIT if _lacks_seed(each) else each.seed for index, each in enumerate(requests)]
    return [replace(each, wait_when_busy=True, seed=seed) for each, seed in zip(requests, seeds, strict=True)]


def answer_line(custom_id: str, call: Call, completions: Sequence[Completion], job: str) -> bytes:
    """Return the line of results. What depends on other requests (cached tokens, times) is not in it."""
    answer = call.answer([_without_chance(completion) for completion in completions])
    if isinstance(answer, ChatAnswer):
        answer = name_tool_calls(answer, f"{job} {custom_id}")
    return result_line(custom_id, msgspec.json.encode(answer), job)


def name_tool_calls(answer: ChatAnswer, source: str) -> ChatAnswer:
    """Return the answer with ids of tool calls that are digests of `source` and their places: else they are drawn."""
    return msgspec.structs.replace(answer, choices=[_name_calls(choice, source) for choice in answer.choices])


def error_line(custom_id: str, number: int, failure: Failed, job: str) -> bytes:
    """Return the line of errors."""
    return failure_line(custom_id, number, failure.status, failure.body, job)


def failed(error: ApiError) -> Failed:
    """Return an error as a status and a body."""
    return Failed(error.status, msgspec.json.encode(error.answer))


def failure_of(error: ExpertFlowError, call: Call) -> Failed:
    """Return the failure of a request. Raises the error if the request would run on another day."""
    if isinstance(error, (EngineError, BusyError)):
        raise error
    return failed(call.error(error))


def _name_calls(choice: ChatChoice, source: str) -> ChatChoice:
    calls = choice.message.tool_calls
    if isinstance(calls, UnsetType):
        return choice
    ids = [name_of("call", source, f"{choice.index} {place}") for place in range(len(calls))]
    named = [msgspec.structs.replace(call, id=each) for call, each in zip(calls, ids, strict=True)]
    return msgspec.structs.replace(choice, message=msgspec.structs.replace(choice.message, tool_calls=named))


def _lacks_seed(request: Request) -> bool:
    return request.seed is None or request.seed is UNSET


def _without_chance(completion: Completion) -> Completion:
    """Return the completion without the prompt tokens that happened to be cached."""
    return replace(completion, cached_tokens=0)


def read_defaults(text: str) -> Defaults:
    """Return the fields of a JSON object, given as a text or as the name of a file. Raises UsageError."""
    if not text:
        return NO_DEFAULTS
    remedy = """Give for example '{"max_tokens": 64, "temperature": 0}', or the name of a file with it"""
    try:
        content = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        fields = read_json(content.encode())
    except (OSError, UnicodeError) as error:
        raise UsageError(f"is neither an object of JSON nor a file that can be read ({error})", text, remedy) from error
    except ApiError as error:
        raise UsageError(f"is no JSON ({error.message})", "defaults", remedy) from error
    if not isinstance(fields, dict):
        raise UsageError("is no object", "defaults", remedy)
    if own := fields.keys() & _OWN_FIELDS:
        raise UsageError(f"names {', '.join(sorted(own))}, which is of each line alone", "defaults", remedy)
    return fields
