"""Answers to completions and chats, and the chunks of their streams. Fields that are UNSET are left out of the JSON."""

from __future__ import annotations

import base64
import io
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from ..client.completions import Completion
from .logprobs import ChatLogprobs, CompletionLogprobs
from .usage import Usage

DONE = b"data: [DONE]\n\n"
"""Last event of a stream that ended well."""
PING = b": ping\n\n"
"""Comment that keeps a silent stream open."""
_FINISH = {"stop": "stop", "length": "length", "deadline": "length", "cancelled": "abort"}


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A choice of a completion, or a piece of one in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    """The stop string or the token id that ended the output, if the body named it."""
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, Any] | None] | UnsetType = UNSET
    routed_experts: str | UnsetType = UNSET


class CompletionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of /v1/completions; in a stream, a chunk of it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None | UnsetType = UNSET


class FunctionCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """Call of a function; in a stream, a piece of one."""

    name: str | None = None
    arguments: str | None = None
    """JSON."""


class ToolCall(msgspec.Struct, frozen=True):
    """Call of a tool."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """Piece of a call of a tool. The first piece has id, type and name."""

    index: int
    function: FunctionCall
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Message of the model. `reasoning` and `reasoning_content` are the same text under both names in use."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True):
    """Piece of a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A choice of a chat."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET
    routed_experts: str | UnsetType = UNSET


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, Any] | None] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """Chunk of a stream of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


def to_sse(data: msgspec.Struct, event: str = "") -> bytes:
    """Return a server-sent event whose data is the struct as JSON."""
    name = f"event: {event}\n".encode() if event else b""
    return b"%sdata: %s\n\n" % (name, msgspec.json.encode(data))


def finish_reason(reason: str) -> str:
    """Return the API's word for the reason why an output ended."""
    return _FINISH.get(reason, reason)


def encode_routes(completion: Completion, start: int) -> str | UnsetType:
    """Return the experts of a completion's tokens from `start` on, as vLLM does: base64 of a .npy file."""
    if completion.routed_experts is None:
        return UNSET
    file = io.BytesIO()
    np.save(file, completion.routed_experts[start:])
    return base64.b64encode(file.getvalue()).decode()
