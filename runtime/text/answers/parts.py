"""The parts of an answer, and what a parser of answers is."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool: its name, and the arguments as a text of JSON."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class AnswerParts:
    """New parts of an answer, or a whole one. A tool call is given when it is complete, unless calls are streamed."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    """Calls that are new; if calls are streamed, the last one may grow."""
    call_text: str = ""
    """More arguments of the last call before these."""

    def __add__(self, other: AnswerParts) -> AnswerParts:
        """Return these parts with later ones behind them."""
        calls, call_text = self.calls, self.call_text
        if not calls:
            call_text += other.call_text
        elif other.call_text:
            calls = [*calls[:-1], ToolCall(calls[-1].name, calls[-1].arguments + other.call_text)]
        return AnswerParts(
            self.content + other.content, self.reasoning + other.reasoning, [*calls, *other.calls], call_text
        )


class AnswerParser(Protocol):
    """Takes an answer apart as its text grows. The parts do not depend on the pieces in which the text comes."""

    def feed(self, text: str) -> AnswerParts:
        """Return the parts that this text completes."""
        ...

    def finish(self) -> AnswerParts:
        """Return the parts that are left at the end of the answer."""
        ...


class PlainParser:
    """Parser for answers of text alone."""

    def feed(self, text: str) -> AnswerParts:
        """Return the text."""
        return AnswerParts(text)

    def finish(self) -> AnswerParts:
        """Return nothing."""
        return AnswerParts()


def parse_answer(parser: AnswerParser, text: str) -> AnswerParts:
    """Return the parts of a whole answer."""
    return parser.feed(text) + parser.finish()


def make_call(name: Any, arguments: Any) -> ToolCall:
    """Return a call; arguments that are a text of JSON count as what they hold. Raises ValueError for others."""
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("a call has a name and an object of arguments")
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))
