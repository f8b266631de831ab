"""A conversation for a chat template: messages, tools and documents, checked and made of plain JSON values."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ...errors import RequestError
from .chat_render_job import Message

Messages = str | Sequence[Mapping[str, Any]]
"""Messages as OpenAI's chat completions have them; a text is the only message of a user."""
Image = bytes | Path
RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
_IMAGE_TYPES = ("image", "image_url")


class ChatOptions(TypedDict, total=False):
    """Keywords of `chat_ids` and `chat_prompt`; defaults are those of `read_conversation`."""

    tools: Sequence[Mapping[str, Any]] | None
    documents: Sequence[Mapping[str, Any]] | None
    add_generation_prompt: bool | None
    continue_final_message: bool
    chat_template_kwargs: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Input of a chat template, made by `read_conversation`."""

    messages: list[Message]
    images: list[Image] = field(default_factory=list)
    """Images in the order of their parts, which are `{"type": "image"}` in the messages."""
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    values: dict[str, Any] = field(default_factory=dict)


def read_conversation(messages: Messages, **options: Unpack[ChatOptions]) -> Conversation:
    """Return a checked conversation.

    :param tools: functions that the model may call, as OpenAI's `tools`.
    :param documents: documents that the template puts before the model, objects with title and text.
    :param add_generation_prompt: end where the model's answer begins; by default, unless the last message is continued.
    :param continue_final_message: end inside the last message, which the model continues.
    :param chat_template_kwargs: other variables of the template, such as `enable_thinking`.
    :raises RequestError: for what is no conversation, and for values that are no JSON.
    """
    given: list[Any] = [{"role": "user", "content": messages}] if isinstance(messages, str) else _list(messages)
    if not given:
        raise RequestError("is empty", "messages", "Give at least one message")
    images: list[Image] = []
    read = [_read_message(message, f"messages[{place}]", images) for place, message in enumerate(given)]
    continued = _flag(options.get("continue_final_message"), "continue_final_message") or False
    prompted = _flag(options.get("add_generation_prompt"), "add_generation_prompt")
    if continued and prompted:
        what = "cannot be combined with continue_final_message"
        raise RequestError(what, "add_generation_prompt", "The last message goes on, or an answer begins")
    return Conversation(
        messages=read,
        images=images,
        tools=_objects(options.get("tools"), "tools"),
        documents=_objects(options.get("documents"), "documents"),
        add_generation_prompt=not continued if prompted is None else prompted,
        continue_final_message=continued,
        values=_values(options.get("chat_template_kwargs")),
    )


def _read_message(message: Any, where: str, images: list[Image]) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError("must be an object with a role", where, 'Give for example {"role": "user", "content": "…"}')
    content, calls = message.get("content"), message.get("tool_calls")
    others = {name: value for name, value in message.items() if name not in ("content", "tool_calls")}
    read = plain(others, where)
    if content is not None:
        read["content"] = _read_content(content, f"{where}.content", images)
    if calls is not None:
        read["tool_calls"] = [_read_call(call) for call in plain(_list(calls, f"{where}.tool_calls"), where)]
    return read


def _read_content(content: Any, where: str, images: list[Image]) -> Any:
    if isinstance(content, str):
        return plain(content, where)
    return [_read_part(part, f"{where}[{place}]", images) for place, part in enumerate(_list(content, where))]


def _read_part(part: Any, where: str, images: list[Image]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _IMAGE_TYPES:
        images.append(_read_image(part, where))
        return {"type": "image"}
    if kind != "text" or not isinstance(part.get("text"), str):
        what = f"is a part of type {kind!r}" if kind != "text" else "has no text"
        raise RequestError(what, where, "Parts are of type text, image_url or image")
    return plain(part, where)


def _read_image(part: Mapping[str, Any], where: str) -> Image:
    source = part.get("image_url", part.get("image"))
    source = source.get("url") if isinstance(source, Mapping) else source
    if isinstance(source, (bytes, Path)):
        return source
    header, comma, data = source.partition(",") if isinstance(source, str) else ("", "", "")
    if not comma or not header.startswith("data:") or not header.endswith(";base64"):
        what = "is no image in a data URL; other addresses are not opened"
        raise RequestError(what, where, "Give data:image/png;base64,…, or in Python bytes or a Path")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"is not base64 ({error})", where, "Encode the file's bytes in base64") from error


def _read_call(call: Any) -> Any:
    """Return a tool call with its arguments as an object, as templates want them; clients send a text of JSON."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    return call | {"function": function | {"arguments": arguments}} if isinstance(arguments, dict) else call


def plain(value: Any, where: str) -> Any:
    """Return a copy of plain JSON values, which is all that a template gets. Raises RequestError for others."""
    try:
        return _plain(value, where)
    except RecursionError as error:
        raise RequestError("is nested too deeply", where, "Give plain values") from error


def _plain(value: Any, where: str) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            return _text(str.__str__(value), where)
        case int():
            return int(value)
        case float():
            return float(value)
        case Mapping():
            return {_text(str(key), where): _plain(item, where) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, where) for item in value]
        case _:
            raise RequestError(f"holds a {type(value).__name__}, which is no JSON value", where, "Give plain values")


def _text(text: str, where: str) -> str:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise RequestError("holds a text that cannot be encoded in UTF-8", where, "Give proper text")
    return text


def _list(value: Any, where: str = "messages") -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise RequestError(f"must be a list, not {type(value).__name__}", where, "Give a list of objects")
    return list(value)


def _objects(value: Any, where: str) -> list[dict[str, Any]] | None:
    if value is None:
        return None
    objects = plain(_list(value, where), where)
    if not all(isinstance(item, dict) for item in objects):
        raise RequestError("must be a list of objects", where, "Give a list of objects")
    return objects


def _values(value: Any) -> dict[str, Any]:
    where = "chat_template_kwargs"
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RequestError(f"must be an object, not {type(value).__name__}", where, "Give names and values")
    if taken := RESERVED & value.keys():
        raise RequestError(f"names {', '.join(sorted(taken))}, which has an option of its own", where, "Use the option")
    return plain(value, where)


def _flag(value: Any, where: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise RequestError(f"must be true or false, not {value!r}", where, "Leave it out for the default")
