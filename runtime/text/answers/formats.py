"""The formats of answers by name, and which of them a model's chat template asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ....errors import UsageError
from ..codec import TextCodec
from .blocks import DEEPSEEK, HERMES, MISTRAL, BlockFormat, BlockParser
from .harmony import HarmonyParser
from .parts import AnswerParser, PlainParser
from .reasoning import BEGIN, ReasoningParser

HARMONY = "harmony"
TOOL_FORMATS: dict[str, BlockFormat | None] = {
    "hermes": HERMES, "mistral": MISTRAL, "deepseek": DEEPSEEK, HARMONY: None, "none": None,
}  # fmt: skip
"""Formats of tool calls by name; harmony has its own parser, "none" has no tool calls."""
PROMPT_END = 16
"""Number of ids at the end of a prompt in which the opening marker of the reasoning is looked for."""
_SIGNS = {"hermes": HERMES.begin, "mistral": MISTRAL.begin, "deepseek": DEEPSEEK.begin, HARMONY: "<|channel|>"}


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """Format of a model's answers."""

    tools: str = "none"
    """A name of `TOOL_FORMATS`."""
    reasoning: bool = False
    """Answers may begin with `<think>`."""

    @property
    def has_special_tokens(self) -> bool:
        """Return whether markers are special tokens: then the text must be decoded with them."""
        return self.tools in ("mistral", "deepseek", HARMONY)

    def parser(self, prompt_end: str, reads_calls: bool, streams_calls: bool = False) -> AnswerParser:
        """Return a parser for one answer.

        :param prompt_end: the end of the prompt's text, special tokens included: it may open the reasoning.
        :param reads_calls: the request has tools; otherwise markers of calls are text.
        :param streams_calls: give calls while they are written, where the format lets them.
        """
        if self.tools == HARMONY:
            return HarmonyParser(streams_calls)
        form = TOOL_FORMATS[self.tools] if reads_calls else None
        rest = PlainParser() if form is None else BlockParser(form, streams_calls)
        return ReasoningParser(rest, prompt_end.rstrip().endswith(BEGIN)) if self.reasoning else rest


def detect_format(template: str) -> AnswerFormat:
    """Return the format of answers that a chat template shows by its markers."""
    names = [name for name, sign in _SIGNS.items() if sign in template]
    return AnswerFormat(names[0] if names else "none", reasoning="</think>" in template)


def named_format(tools: str, reasoning: bool) -> AnswerFormat:
    """Return the format of this name. Raises UsageError for a name that is not known."""
    if tools not in TOOL_FORMATS:
        raise UsageError(f"{tools} is no format of tool calls", "tools", f"Give one of {', '.join(TOOL_FORMATS)}")
    return AnswerFormat(tools, reasoning)


def make_parser(codec: TextCodec, prompt_ids: Sequence[int], reads_calls: bool = False) -> AnswerParser:
    """Return a parser for the answer to a prompt, in the format that the model's chat template shows."""
    form = detect_format(codec.chat_template)
    return form.parser(codec.decode(prompt_ids[-PROMPT_END:], special_tokens=True), reads_calls)
