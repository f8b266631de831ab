"""Responses: /v1/responses, translated to a chat and back. Nothing is stored: each body has the whole conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from ..client.completions import Completion, Event
from ..text.answers.parts import AnswerParts
from .answers import ChatAnswer, to_sse
from .bodies import ChatBody, ResponsesBody
from .call import Call, ChunkWriter
from .chat_call import ChatCall
from .chat_parts import call_id
from .errors import ApiError
from .model import ServedModel
from .responses_items import (
    call_item,
    check_include,
    in_words_of_response,
    message_item,
    reasoning_item,
    text_part,
    to_format,
    to_items,
    to_messages,
    to_tool_choice,
    to_tools,
)


class InputDetails(msgspec.Struct, frozen=True):
    """Part of the input's tokens that was not computed again."""

    cached_tokens: int


class OutputDetails(msgspec.Struct, frozen=True):
    """Part of the output's tokens that is reasoning; it is not counted apart."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of /v1/responses."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: str
    model: str
    output: list[dict[str, Any]]
    usage: ResponseUsage | None
    error: None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    store: bool = False
    temperature: float | None = None
    text: dict[str, Any] = {}
    tool_choice: Any = "auto"
    tools: list[dict[str, Any]] = []
    top_p: float | None = None
    truncation: Literal["disabled"] = "disabled"


class StreamEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Event of a stream; which fields it has depends on its type."""

    type: str
    sequence_number: int
    response: ResponseAnswer | None = None
    item: dict[str, Any] | None = None
    part: dict[str, Any] | None = None
    item_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    delta: str | None = None
    text: str | None = None
    arguments: str | None = None
    name: str | None = None
    logprobs: list[Any] | None = None


class ResponsesCall(Call):
    """A body of /v1/responses. `chat` is the same as a chat."""

    names = {"prompt": "input", "messages": "input", "max_new_tokens": "max_output_tokens"}

    def __init__(self, body: ResponsesBody, ignored: list[str], model: ServedModel) -> None:
        """Read the body. Raises ApiError."""
        super().__init__("resp_", model, body.model, ignored)
        self.body, self.stream = body, bool(body.stream)
        check_include(body.include)
        try:
            self.chat = ChatCall(_to_chat(body), [], model)
        except ApiError as error:
            raise in_words_of_response(error) from error
        self.requests = self.chat.requests

    def answer(self, completions: Sequence[Completion]) -> ResponseAnswer:
        """Return the answer."""
        chat = self.chat.answer(completions)
        choice = chat.choices[0]
        status = "incomplete" if choice.finish_reason == "length" else "completed"
        return self.wrap(status, to_items(choice.message, self.id, status), _usage(chat))

    def wrap(self, status: str, output: list[dict[str, Any]], usage: ResponseUsage | None) -> ResponseAnswer:
        """Return the response in a state."""
        body = self.body
        return ResponseAnswer(
            id=self.id,
            created_at=self.created,
            status=status,
            model=self.model_name,
            output=output,
            usage=usage,
            incomplete_details={"reason": "max_output_tokens"} if status == "incomplete" else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            temperature=body.temperature,
            text=_without_nulls(msgspec.to_builtins(body.text)) if body.text else {"format": {"type": "text"}},
            tool_choice="auto" if body.tool_choice is None else body.tool_choice,
            tools=body.tools or [],
            top_p=body.top_p,
        )

    def writer(self) -> ChunkWriter:
        """Return a writer for a stream."""
        return _ResponsesWriter(self)


class _ResponsesWriter(ChunkWriter):
    """Sends the events of a response: the reasoning whole, the text as it comes, calls of functions whole."""

    def __init__(self, call: ResponsesCall) -> None:
        self._call, self._number = call, 0
        self._parser = call.chat.reader.parser(call.requests[0].prompt)
        self._seen = AnswerParts()
        self._items: list[dict[str, Any]] = []
        self._text: dict[str, Any] | None = None
        """Item of the text; None before its first letter."""

    def on_event(self, event: Event) -> list[bytes]:
        """Return the events for new text."""
        opening = [] if self._number else self._begin()
        parts = self._parser.feed(event.text_delta)
        parts = parts if event.finish_reason is None else parts + self._parser.finish()
        self._seen += parts
        return [*opening, *self._more_text(parts.content)] if parts.content else opening

    def end(self, completions: Sequence[Completion]) -> list[bytes]:
        """Return the events that close what is open, and the whole response."""
        events = [] if self._number else self._begin()
        answer = self._call.answer(completions)
        if self._text is None and not self._seen.calls:
            events += self._more_text("")
        elif self._text is None:
            events += self._reasoning()
        events += self._close_text(answer.status) if self._text is not None else []
        for call in self._call.chat.reader.keep(self._seen).calls:
            events += self._whole_item(call_item(call_id(), call.name, call.arguments))
        answer = msgspec.structs.replace(answer, output=self._items)
        return [*events, self._send(f"response.{answer.status}", response=answer)]

    def _begin(self) -> list[bytes]:
        response = self._call.wrap("in_progress", [], None)
        return [self._send(f"response.{state}", response=response) for state in ("created", "in_progress")]

    def _more_text(self, text: str) -> list[bytes]:
        opening = self._open_text() if self._text is None else []
        return [*opening, self._in_text("response.output_text.delta", delta=text, logprobs=[])]

    def _open_text(self) -> list[bytes]:
        """Return the events of the reasoning, which comes before, and of the item of the text."""
        events = self._reasoning()
        self._text = message_item(self._call.id, [], "in_progress")
        self._items.append(self._text)
        added = self._send("response.output_item.added", item=self._text, output_index=len(self._items) - 1)
        return [*events, added, self._in_text("response.content_part.added", part=text_part(""))]

    def _reasoning(self) -> list[bytes]:
        return self._whole_item(reasoning_item(self._seen.reasoning)) if self._seen.reasoning else []

    def _close_text(self, status: str) -> list[bytes]:
        part = text_part(self._seen.content)
        self._items[-1] = message_item(self._call.id, [part], status)
        return [
            self._in_text("response.output_text.done", text=part["text"], logprobs=[]),
            self._in_text("response.content_part.done", part=part),
            self._send("response.output_item.done", item=self._items[-1], output_index=len(self._items) - 1),
        ]

    def _whole_item(self, item: dict[str, Any]) -> list[bytes]:
        """Return the events of an item that is sent whole."""
        self._items.append(item)
        place = len(self._items) - 1
        events = [self._send("response.output_item.added", item=item, output_index=place)]
        if item["type"] == "function_call":
            where = {"item_id": item["id"], "output_index": place}
            events.append(self._send("response.function_call_arguments.delta", delta=item["arguments"], **where))
            done = {"arguments": item["arguments"], "name": item["name"]}
            events.append(self._send("response.function_call_arguments.done", **done, **where))
        return [*events, self._send("response.output_item.done", item=item, output_index=place)]

    def _in_text(self, kind: str, **fields: Any) -> bytes:
        place = next(place for place, item in enumerate(self._items) if item["type"] == "message")
        item = self._items[place]["id"]
        return self._send(kind, item_id=item, output_index=place, content_index=0, **fields)

    def _send(self, kind: str, **fields: Any) -> bytes:
        event = StreamEvent(type=kind, sequence_number=self._number, **fields)
        self._number += 1
        return to_sse(event, kind)


def _to_chat(body: ResponsesBody) -> ChatBody:
    """Return the body as a chat. Raises ApiError."""
    reasoning = body.reasoning
    return ChatBody(
        messages=to_messages(body),
        model=body.model,
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=body.seed,
        response_format=to_format(body),
        reasoning_effort=reasoning.effort if reasoning else None,
        tools=to_tools(body.tools),
        tool_choice=None if not body.tools and body.tool_choice == "auto" else to_tool_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        priority=body.priority,
        chat_template_kwargs=body.chat_template_kwargs,
    )


def _usage(chat: ChatAnswer) -> ResponseUsage:
    usage = chat.usage
    cached = InputDetails(usage.prompt_tokens_details.cached_tokens)
    return ResponseUsage(usage.prompt_tokens, cached, usage.completion_tokens, OutputDetails(), usage.total_tokens)


def _without_nulls(value: Any) -> Any:
    """Return a copy without fields that are null, on every level."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return value
