"""The texts of a demonstration as they grow, and how long they stood still."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..client import Event


@dataclass
class Text:
    """One prompt and what has come of it."""

    prompt: str
    text: str = ""
    tokens: int = 0
    done: bool = False


class Texts:
    """All of them, in the order of the prompts."""

    def __init__(self, prompts: list[str]) -> None:
        self.all = [Text(prompt) for prompt in prompts]

    @property
    def tokens(self) -> int:
        return sum(text.tokens for text in self.all)

    def take(self, event: Event) -> Text:
        """Returns the text that has grown. Raises the error if its request failed."""
        if event.error:
            raise event.error
        text = self.all[event.index]
        text.text += event.text_delta
        text.tokens += len(event.token_ids)
        text.done = event.finish_reason is not None
        return text


class Interruption:
    """Kills a stage once `after_tokens` have come, and measures the longest pause from then on."""

    def __init__(self, stage: str, after_tokens: int, kill: Callable[[str], None]) -> None:
        self.stage, self.after_tokens = stage, after_tokens
        self.pause_s = 0.0
        self._kill = kill
        self._last_s: float | None = None

    @property
    def happened(self) -> bool:
        return self._last_s is not None

    def take(self, tokens: int, now_s: float) -> None:
        """So many tokens have come in all."""
        if self._last_s is not None:
            self.pause_s = max(self.pause_s, now_s - self._last_s)
            self._last_s = now_s
        elif tokens >= self.after_tokens:
            self._kill(self.stage)
            self._last_s = now_s
