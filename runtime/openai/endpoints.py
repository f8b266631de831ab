"""The endpoints that run requests, by path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from .bodies import ChatBatchBody, ChatBody, CompletionBody, ResponsesBody
from .call import Call
from .chat_call import ChatCall
from .completion_call import CompletionCall
from .errors import MISSING, ApiError
from .model import ServedModel
from .reading import read_body
from .responses_call import ResponsesCall


class Endpoint(NamedTuple):
    """A path: the body it takes, and the call that is made of it."""

    body: type[msgspec.Struct]
    call: Callable[[Any, list[str], ServedModel], Call]


COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
QUICK_BYTES = 4096
"""Size of a body whose texts become ids in a millisecond or two, times its choices."""
ENDPOINTS: dict[str, Endpoint] = {
    COMPLETIONS: Endpoint(CompletionBody, CompletionCall),
    CHATS: Endpoint(ChatBody, ChatCall),
    "/v1/chat/completions/batch": Endpoint(ChatBatchBody, ChatCall),
    "/v1/responses": Endpoint(ResponsesBody, ResponsesCall),
}


def prepare_call(path: str, body: bytes | dict[str, Any], model: ServedModel) -> Call:
    """Return the requests of a body, given as JSON or as its content.

    Takes as long as its texts take to become ids, so a server calls this in a thread. Raises ApiError.
    """
    if path not in ENDPOINTS:
        raise ApiError(404, f"There is no {path[:200]}", kind=MISSING, code="unknown_url")
    endpoint = ENDPOINTS[path]
    read, ignored = read_body(body, endpoint.body)
    return endpoint.call(read, ignored, model)


def prepare_quick_call(path: str, body: bytes, model: ServedModel) -> Call | None:
    """Return the requests of a body that needs no thread: a small one, with no template to render or rule to compile.

    None for others. Raises ApiError.
    """
    if path != COMPLETIONS or len(body) > QUICK_BYTES:
        return None
    read, ignored = read_body(body, CompletionBody)
    has_rule = read.response_format is not None or read.structured_outputs is not None
    if has_rule or len(body) * (read.n or 1) > QUICK_BYTES:
        return None
    return CompletionCall(read, ignored, model)
