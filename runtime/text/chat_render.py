"""Renders a conversation by a chat template as transformers' `apply_chat_template` does. Runs in a process of its own.

Follows `render_jinja_template` of transformers 5.23 (utils/chat_template_utils.py). Imports jinja2.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

from jinja2 import Environment, Template, nodes

from .chat_render_job import Message, RenderJob
from .chat_sandbox import sandbox

_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks the end of the message that the model is to continue; its space shows whether the template trims messages."""
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning; templates read the first, those of gpt-oss the second."""


def render(job: RenderJob) -> str:
    """Return the rendered conversation. Raises ValueError, or what jinja2 raises for a template that fails."""
    template, has_parts = _compile(job.template)
    messages = [_alias_reasoning({key: value for key, value in message.items() if value is not None})
                for message in job.messages]  # fmt: skip
    if not has_parts:
        messages = [_join_parts(message) for message in messages]
    if job.continue_final_message:
        messages[-1] = _mark_end(messages[-1])
    text = template.render(
        messages=messages,
        tools=job.tools,
        documents=job.documents,
        add_generation_prompt=job.add_generation_prompt,
        **job.values,
    )
    return _cut_at_mark(text) if job.continue_final_message else text


@lru_cache(maxsize=8)
def _compile(text: str) -> tuple[Template, bool]:
    """Return the compiled template, and whether it takes messages whose content is a list of parts."""
    environment = sandbox(datetime.now)
    return environment.from_string(text), _reads_parts(environment, text)


def _reads_parts(environment: Environment, text: str) -> bool:
    """Return whether the template has a loop over a content, or indexes one by a number."""
    tree = environment.parse(text)
    loops = [loop.iter for loop in tree.find_all(nodes.For)]
    indexed = [item.node for item in tree.find_all(nodes.Getitem) if _constant(item.arg, int)]
    return any(_is_content(node) for node in [*loops, *indexed])


def _is_content(node: nodes.Node | None) -> bool:
    match node:
        case nodes.Filter():
            return _is_content(node.node)
        case nodes.Getattr():
            return node.attr == "content"
        case nodes.Getitem():
            return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
        case nodes.Name():
            return "content" in node.name
        case _:
            return False


def _constant(node: nodes.Node, kind: type) -> bool:
    return isinstance(node, nodes.Const) and isinstance(node.value, kind)


def _join_parts(message: Message) -> Message:
    """Return the message with parts of text joined by line ends, as most templates take text alone."""
    parts = message.get("content")
    if isinstance(parts, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        return message | {"content": "\n".join(str(part.get("text", "")) for part in parts)}
    return message


def _alias_reasoning(message: Message) -> Message:
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _mark_end(message: Message) -> Message:
    content = message.get("content")
    if isinstance(content, str):
        return message | {"content": content + _TAG}
    parts = list(content) if isinstance(content, list) else []
    for place in reversed(range(len(parts))):
        if "text" in parts[place]:
            parts[place] = parts[place] | {"text": parts[place]["text"] + _TAG}
            return message | {"content": parts}
    raise ValueError("the last message has no text to continue")


def _cut_at_mark(text: str) -> str:
    place = text.rfind(_TAG.strip())
    if place < 0:
        raise ValueError("the template leaves out the last message, which is to be continued")
    trimmed = not text.startswith(_TAG, place)
    return text[:place].rstrip() if trimmed else text[:place]
