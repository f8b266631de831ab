"""The chat templates of a model folder, and what they need to be rendered as transformers' `apply_chat_template` does.

A template is a stranger's code. It is rendered in a process of its own (chat_process.py), in Jinja's sandbox, and gets
plain values only.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import UsageError
from .chat_process import TemplateProcess
from .chat_render_job import RenderJob
from .conversation import Conversation
from .tokenizer import CONFIG, named_tokens, read_settings

FILE, FOLDER, LEGACY = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
TOOL_USE = "tool_use"
"""Name of the template that is taken for a conversation with tools, if there are several."""
_PLAIN = "Leave out --chat to give the text as it is"


def has_chat_template(folder: Path) -> bool:
    """Return whether a model folder has a chat template. An unreadable one counts as none."""
    try:
        return bool(_read_templates(folder))
    except UsageError:
        return False


class ChatTemplates:
    """The chat templates of a model folder, read at the first conversation. `close` ends the process that renders."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = TemplateProcess()

    def render(self, conversation: Conversation) -> str:
        """Return the text of a conversation. It contains its special tokens: encode it without adding others.

        Raises UsageError if the folder has no chat template, or if the template fails or takes too long.
        """
        job = RenderJob(
            template=choose_template(self._templates, self._folder, conversation.tools is not None),
            messages=conversation.messages,
            tools=conversation.tools,
            documents=conversation.documents,
            add_generation_prompt=conversation.add_generation_prompt,
            continue_final_message=conversation.continue_final_message,
            values=self._named_tokens | conversation.values,
        )
        return self._process.render(job, str(self._folder))

    @property
    def default(self) -> str:
        """Return the template of a conversation without tools; empty if there is none, or it cannot be read."""
        try:
            return self._templates.get("default", "")
        except UsageError:
            return ""

    def close(self) -> None:
        """End the process that renders. Idempotent."""
        self._process.close()

    @cached_property
    def _templates(self) -> dict[str, str]:
        return _read_templates(self._folder)

    @cached_property
    def _named_tokens(self) -> dict[str, str]:
        return named_tokens(self._folder)


def require_chat_template(folder: Path) -> str:
    """Return the chat template of a model folder. Raises UsageError if it has none, or it cannot be read."""
    return choose_template(_read_templates(folder), folder, has_tools=False)


def choose_template(templates: dict[str, str], folder: Path, has_tools: bool) -> str:
    """Return the template for a conversation. Raises UsageError if there is none."""
    if has_tools and TOOL_USE in templates:
        return templates[TOOL_USE]
    if "default" not in templates:
        named = f" but {', '.join(sorted(templates))}" if templates else ""
        raise UsageError(f"this model has no chat template{named}", str(folder), _PLAIN)
    return templates["default"]


def _read_templates(folder: Path) -> dict[str, str]:
    """Return template by name. Template files take precedence over tokenizer_config.json."""
    files = {"default": folder / FILE, **{file.stem: file for file in sorted((folder / FOLDER).glob("*.jinja"))}}
    if found := {name: _read_text(file) for name, file in files.items() if file.is_file()}:
        return found
    stated = read_settings(folder).get("chat_template")
    if stated is None and (folder / LEGACY).is_file():
        stated = _read_legacy(folder / LEGACY)
    return _by_name(stated, folder / CONFIG)


def _by_name(stated: Any, file: Path) -> dict[str, str]:
    if isinstance(stated, list) and all(isinstance(entry, dict) for entry in stated):
        stated = {str(entry.get("name")): entry.get("template") for entry in stated}
    templates = {"default": stated} if isinstance(stated, str) else stated or {}
    if not isinstance(templates, dict) or not all(isinstance(text, str) for pair in templates.items() for text in pair):
        raise UsageError("chat_template is neither a text nor a list of named texts", str(file), _PLAIN)
    return templates


def _read_legacy(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes()).get("chat_template")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UsageError(f"cannot be read: {error}", str(file), _PLAIN) from error


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {error}", str(file), _PLAIN) from error
