"""A model's chat template, rendered for one message of a user as transformers' `apply_chat_template` renders it.

Templates are untrusted: they run in Jinja's sandbox, get plain values only, and cannot store private names.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from ...errors import UsageError
from .tokenizer import CONFIG, named_tokens, read_settings

FILE, FOLDER, LEGACY = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
_PLAIN = "Leave out --chat to give the text as it is"


def has_chat_template(folder: Path) -> bool:
    """Return whether a model folder has a chat template. An unreadable one counts as none."""
    try:
        return bool(_read_templates(folder))
    except UsageError:
        return False


def render_chat(folder: Path, text: str) -> str:
    """Render a text as the only message of a user, up to the point where the model's answer begins.

    The result contains its special tokens: encode it without adding others. Raises UsageError if the folder has no
    chat template, if the template fails, or without jinja2.
    """
    messages = [{"role": "user", "content": text}]
    return _render(require_chat_template(folder), folder, {"messages": messages, **named_tokens(folder)})


def require_chat_template(folder: Path) -> str:
    """Return the chat template of a model folder. Raises UsageError if it has none, or it cannot be read."""
    templates = _read_templates(folder)
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
        stated = {entry.get("name"): entry.get("template") for entry in stated}
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


def _render(template: str, folder: Path, values: dict[str, Any]) -> str:
    try:
        from .chat_sandbox import sandbox
    except ImportError as error:
        raise UsageError("a chat template needs jinja2", "--chat", "pip install 'jinja2>=3.1.6'") from error
    import jinja2

    try:
        compiled = sandbox(datetime.now).from_string(template)
        return compiled.render(tools=None, documents=None, add_generation_prompt=True, **values)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        what = f"its chat template cannot render this text: {error}"
        raise UsageError(what, str(folder), _PLAIN) from error
