"""Parts of a chat's answer: reasoning, content and calls of tools, in the shapes of messages and deltas."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from msgspec import UNSET

from ...errors import ExpertFlowError
from ..client.options import Prompt
from ..text.answers.forced import ForcedCallsParser, forced_calls_schema
from ..text.answers.parts import AnswerParser, AnswerParts, parse_answer
from ..text.answers.parts import ToolCall as ReadCall
from .answers import ChatDelta, ChatMessage, FunctionCall, ToolCall, ToolCallDelta
from .bodies import ChatOptions, ToolChoice
from .chat_prompt import template_tools
from .errors import refuse, to_api_error
from .model import ServedModel

PROMPT_END = 16
"""Tokens of a prompt's end that may open the reasoning."""


class AnswerReader:
    """Takes the answers of a body apart, by the format that the model's chat template shows."""

    def __init__(self, body: ChatOptions, model: ServedModel) -> None:
        """Read how tools may be called. Raises ApiError for a choice without tools."""
        self._body, self._model = body, model
        self.choice = body.tool_choice or ("auto" if body.tools else "none")
        if self.choice != "none" and not body.tools:
            raise refuse("tool_choice needs tools", param="tool_choice")

    @property
    def schema(self) -> dict[str, object] | None:
        """Return the JSON schema of an answer that must call a tool; None: it need not. Raises ApiError."""
        if self.choice in ("none", "auto"):
            return None
        try:
            parallel = self._body.parallel_tool_calls is not False
            return forced_calls_schema(template_tools(self._body.tools) or [], self._forced_name, parallel)
        except ExpertFlowError as error:
            raise to_api_error(error) from error

    @property
    def options(self) -> dict[str, bool]:
        """Return the options of requests that the format needs: some models mark calls by special tokens."""
        shown = self.choice in ("none", "auto") and self._model.answer_format.has_special_tokens
        return {"skip_special_tokens": False} if shown else {}

    def parser(self, prompt: Prompt) -> AnswerParser:
        """Return a parser for one answer to a prompt."""
        if self.choice not in ("none", "auto"):
            return ForcedCallsParser(self._forced_name, streams=True)
        reads_calls = self.choice == "auto"
        return self._model.answer_format.parser(self._end_of(prompt), reads_calls, streams_calls=True)

    def read(self, prompt: Prompt, text: str) -> AnswerParts:
        """Return the parts of a whole answer."""
        return self.keep(parse_answer(self.parser(prompt), text))

    def keep(self, parts: AnswerParts, before: int = 0) -> AnswerParts:
        """Return the parts that the body wants, after `before` calls."""
        one = self._body.parallel_tool_calls is False
        calls = parts.calls[: max(0, 1 - before)] if one else parts.calls
        call_text = "" if one and before > 1 else parts.call_text
        reasoning = "" if self._body.include_reasoning is False else parts.reasoning
        return AnswerParts(parts.content, reasoning, calls, call_text)

    @property
    def _forced_name(self) -> str | None:
        return self.choice.function.name if isinstance(self.choice, ToolChoice) else None

    def _end_of(self, prompt: Prompt) -> str:
        if isinstance(prompt, Sequence) and not isinstance(prompt, str):
            return self._model.codec.decode(list(prompt[-PROMPT_END:]), special_tokens=True)
        return getattr(prompt, "text", "")


def to_message(parts: AnswerParts) -> ChatMessage:
    """Return the parts as a message."""
    calls = [ToolCall(call_id(), FunctionCall(call.name, call.arguments)) for call in parts.calls]
    return ChatMessage(
        content=parts.content if parts.content or not calls else None,
        reasoning=parts.reasoning or UNSET,
        reasoning_content=parts.reasoning or UNSET,
        tool_calls=calls or UNSET,
    )


def to_delta(parts: AnswerParts, before: int) -> ChatDelta:
    """Return the parts as a piece of a message that has had `before` calls."""
    calls = [_call_delta(call, place) for place, call in enumerate(parts.calls, before)]
    if parts.call_text:
        calls.insert(0, ToolCallDelta(index=before - 1, function=FunctionCall(arguments=parts.call_text)))
    return ChatDelta(
        content=parts.content or UNSET,
        reasoning=parts.reasoning or UNSET,
        reasoning_content=parts.reasoning or UNSET,
        tool_calls=calls or UNSET,
    )


def is_empty(parts: AnswerParts) -> bool:
    """Return whether there is nothing to show."""
    return not (parts.content or parts.reasoning or parts.calls or parts.call_text)


def call_id() -> str:
    """Return a fresh id of a call."""
    return "call_" + uuid.uuid4().hex[:24]


def _call_delta(call: ReadCall, place: int) -> ToolCallDelta:
    function = FunctionCall(call.name, call.arguments)
    return ToolCallDelta(index=place, id=call_id(), type="function", function=function)
