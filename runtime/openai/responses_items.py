"""Input and output of /v1/responses: items to chat messages, and chat messages to items."""

from __future__ import annotations

import re
import uuid
from typing import Any

from msgspec import UNSET

from .answers import ChatMessage
from .bodies import Function, FunctionName, ResponseFormat, ResponsesBody, Tool, ToolChoice
from .bodies import JsonSchema as Schema
from .errors import ApiError, refuse

_TEXTS = ("input_text", "output_text", "text")
_FIELDS = {
    "messages": "input",
    "response_format": "text.format",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
}
"""Field of a chat -> field of a response. Instructions are a message too, so messages have other places than items."""
_ROLES = {"developer": "system"}
"""Roles that chat templates do not know -> the one they do."""


def to_messages(body: ResponsesBody) -> list[dict[str, Any]]:
    """Return the conversation of a body. Raises ApiError for items that only a server with a memory has."""
    first = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    if isinstance(body.input, str):
        return [*first, {"role": "user", "content": body.input}]
    items = [_to_message(item, f"input[{place}]") for place, item in enumerate(body.input)]
    return [*first, *_join_calls([message for message in items if message is not None])]


def check_include(include: list[str] | None) -> None:
    """Raise ApiError for what would be in the answer of another server; the rest is of tools that it would run."""
    if "message.output_text.logprobs" in (include or ()):
        raise refuse("include: log probabilities are given by /v1/chat/completions", param="include")


def in_words_of_response(error: ApiError) -> ApiError:
    """Return an error of the chat that a response became with the names of the response's fields."""
    field, rest = re.fullmatch(r"(\w*)(.*)", error.param or "", re.DOTALL).groups()  # type: ignore[union-attr]
    if field not in _FIELDS:
        return error
    param = _FIELDS[field] + ("" if field == "messages" else rest)
    message = error.message.replace("response_format.json_schema", "text.format").replace(error.param or "", param)
    return ApiError(error.status, message, kind=error.kind, param=param, code=error.code)


def to_tools(tools: list[dict[str, Any]] | None) -> list[Tool] | None:
    """Return functions as chats have them. Raises ApiError for tools that a server would run."""
    return [_to_tool(tool, f"tools[{place}]") for place, tool in enumerate(tools)] if tools else None


def to_tool_choice(choice: str | dict[str, Any] | None) -> Any:
    """Return the choice of a tool as chats have it. Raises ApiError."""
    if choice is None or choice in ("none", "auto", "required"):
        return choice
    if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("name"), str):
        return ToolChoice("function", FunctionName(choice["name"]))
    raise refuse("tool_choice: must be none, auto, required or a function", param="tool_choice")


def to_format(body: ResponsesBody) -> ResponseFormat | None:
    """Return the format of the output as chats have it."""
    form = body.text.format if body.text else None
    if form is None or form.type == "text":
        return None
    schema = Schema(name=form.name, schema=form.schema) if form.type == "json_schema" else None
    return ResponseFormat(form.type, schema)


def to_items(message: ChatMessage, response_id: str, status: str) -> list[dict[str, Any]]:
    """Return the output items of a message: reasoning, text, calls of functions."""
    items: list[dict[str, Any]] = []
    if message.reasoning is not UNSET:
        items.append(reasoning_item(str(message.reasoning)))
    calls = message.tool_calls or []
    if message.content or not calls:
        items.append(message_item(response_id, [text_part(message.content or "")], status))
    items += [call_item(call.id, call.function.name or "", call.function.arguments or "") for call in calls]
    return items


def message_item(response_id: str, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
    """Return an item with text. Its id follows from the response's, so that all events of a stream agree."""
    item = "msg_" + response_id.removeprefix("resp_")
    return {"type": "message", "id": item, "status": status, "role": "assistant", "content": content}


def reasoning_item(text: str) -> dict[str, Any]:
    """Return an item with reasoning."""
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": item_id("rs_"), "summary": [], "content": content}


def text_part(text: str) -> dict[str, Any]:
    """Return a part of a message with text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call_item(call_id: str, name: str, arguments: str, status: str = "completed") -> dict[str, Any]:
    """Return an item with the call of a function."""
    return {
        "type": "function_call", "id": item_id("fc_"), "call_id": call_id, "name": name, "arguments": arguments,
        "status": status,
    }  # fmt: skip


def item_id(prefix: str) -> str:
    """Return a fresh id of an item."""
    return prefix + uuid.uuid4().hex


def _to_message(item: dict[str, Any], where: str) -> dict[str, Any] | None:
    """Return an item as a message; None for reasoning, which templates do not read again."""
    match item.get("type", "message"):
        case "message":
            return {"role": _role(item, where), "content": _content(item.get("content"), where)}
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            return {"role": "assistant", "content": "", "tool_calls": [call]}
        case "function_call_output":
            return {"role": "tool", "tool_call_id": item.get("call_id"), "content": _output(item.get("output"), where)}
        case "reasoning":
            return None
        case kind:
            raise refuse(f"{where}: items of type {str(kind)[:50]!r} are not supported", param=where)


def _role(item: dict[str, Any], where: str) -> str:
    role = item.get("role")
    if not isinstance(role, str):
        raise refuse(f"{where}: has no role", param=where)
    return _ROLES.get(role, role)


def _content(content: Any, where: str) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise refuse(f"{where}.content: must be a text or a list of parts", param=where)
    return [_part(part, where) for part in content]


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXTS:
        return {"type": "text", "text": part.get("text")}
    if kind == "input_image":
        return {"type": "image_url", "image_url": {"url": part.get("image_url")}}
    raise refuse(f"{where}: parts of type {str(kind)[:50]!r} are not supported", param=where)


def _output(output: Any, where: str) -> Any:
    return output if isinstance(output, str) else _content(output, where)


def _join_calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with calls that follow each other, or a text of the model, in one message."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        if "tool_calls" in message and joined and joined[-1]["role"] == "assistant":
            joined[-1] = joined[-1] | {"tool_calls": [*joined[-1].get("tool_calls", []), *message["tool_calls"]]}
        else:
            joined.append(message)
    return joined


def _to_tool(tool: dict[str, Any], where: str) -> Tool:
    if tool.get("type") != "function" or not isinstance(tool.get("name"), str):
        raise refuse(f"{where}: only functions with a name are supported", param="tools")
    parameters, description = tool.get("parameters"), tool.get("description")
    if not isinstance(parameters, (dict, type(None))) or not isinstance(description, (str, type(None))):
        raise refuse(f"{where}: parameters must be an object, description a text", param="tools")
    return Tool("function", Function(tool["name"], description, parameters))
