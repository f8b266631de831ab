"""The model that bodies are about: its names, its limits, its tokenizer and its own sampling settings."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...ipc.messages import Welcome
from ..text.answers.formats import AnswerFormat, detect_format
from ..text.codec import TextCodec
from .errors import MISSING, ApiError

DEFAULT_MAX_TOKENS = 1024
"""Output tokens of a chat that names no limit. The engine reserves KV memory for the longest output of a request."""
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")


@dataclass(frozen=True)
class ServedModel:
    """The only model of an engine. `names`: what bodies may call it; the first one stands in answers."""

    names: tuple[str, ...]
    facts: Welcome
    codec: TextCodec
    default_max_tokens: int = DEFAULT_MAX_TOKENS
    own_settings: bool = True
    """False: sampling defaults are OpenAI's (temperature 1), whatever generation_config.json says."""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        """Return the name for answers."""
        return self.names[0]

    @property
    def folder(self) -> Path:
        """Return the model folder."""
        return Path(self.facts.model)

    def require(self, name: str | None) -> str:
        """Return the name for the answer to a body that names this model, or none. Raises ApiError (404) otherwise."""
        if name is None or name in self.names:
            return name or self.name
        what = f"The model `{name[:200]}` does not exist; this server has `{self.name}`"
        raise ApiError(404, what, kind=MISSING, param="model", code="model_not_found")

    @cached_property
    def sampling_defaults(self) -> dict[str, float]:
        """Return the values of temperature, top_p, top_k and min_p for bodies that leave them out.

        They are those of the model's generation_config.json, as in vLLM; without one, temperature is 1.
        """
        stated = _read_json(self.folder / "generation_config.json") if self.own_settings else {}
        kept = {name: stated[name] for name in _SAMPLING if _is_number(stated.get(name))}
        return {"temperature": 1.0, **kept}

    @cached_property
    def answer_format(self) -> AnswerFormat:
        """Return how the model writes reasoning and calls of tools, as its chat template shows."""
        return detect_format(self.codec.chat_template)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object; empty if there is none. The engine has read the file before: it is whole."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
