"""Conversations of a body to prompts: by the model's chat template, with images for models that take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ...errors import ExpertFlowError
from ..client.images import ImagePrompt
from ..text.conversation import Conversation, read_conversation
from .bodies import ChatOptions, Tool
from .call import check_ids, check_text
from .errors import refuse, to_api_error
from .model import ServedModel


def read_chat(messages: Sequence[dict[str, Any]], body: ChatOptions, model: ServedModel) -> list[int] | ImagePrompt:
    """Return a conversation as ids, or as text and images. Raises ApiError."""
    values = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        values.setdefault("reasoning_effort", body.reasoning_effort)
    try:
        conversation = read_conversation(
            messages,
            tools=None if body.tool_choice == "none" else template_tools(body.tools),
            documents=body.documents,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=bool(body.continue_final_message),
            chat_template_kwargs=values,
        )
    except ExpertFlowError as error:
        raise to_api_error(error) from error
    return render(conversation, model)


def render(conversation: Conversation, model: ServedModel) -> list[int] | ImagePrompt:
    """Return the prompt of a conversation. Raises ApiError, also for a model without a chat template."""
    check_text("".join(_texts(conversation.messages)), model, "messages")
    try:
        if conversation.images:
            return ImagePrompt(model.codec.render_chat(conversation), conversation.images)
        ids = model.codec.encode_chat(conversation)
    except ExpertFlowError as error:
        raise refuse(f"{error.sentence}. {error.remedy}", param="messages", code="chat_template") from error
    return check_ids(ids, model, "messages")


def template_tools(tools: list[Tool] | None) -> list[dict[str, Any]] | None:
    """Return tools as a chat template gets them, without what the body left out; None if there are none."""
    if not tools:
        return None
    return [{"type": tool.type, "function": _without_nulls(msgspec.structs.asdict(tool.function))} for tool in tools]


def _without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _texts(messages: list[dict[str, Any]]) -> list[str]:
    """Return the contents of messages that are texts."""
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    texts = [content for content in contents if isinstance(content, str)]
    return texts + [part["text"] for part in parts if isinstance(part.get("text"), str)]
