"""Calls of tools that are given while they are written: the name first, then the arguments as they come."""

from __future__ import annotations

import json
import re

from .parts import AnswerParts, ToolCall

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)+")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class ObjectScanner:
    """Finds the end of a JSON object in a growing text that begins with its brace."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = self._escaped = False
        self.done = False

    def scan(self, text: str) -> int:
        """Return how many letters belong to the object; all of them unless it ends here."""
        for place, letter in enumerate(text, 1):
            if self._escaped:
                self._escaped = False
            elif self._in_text:
                self._escaped, self._in_text = letter == "\\", letter != '"'
            elif letter == '"':
                self._in_text = True
            else:
                self._depth += (letter in "{[") - (letter in "}]")
                if not self._depth:
                    self.done = True
                    return place
        return len(text)


class CallReader:
    """Reads `{"name": …, "arguments": {…}}` as it grows. A call in which the name is not first is never begun."""

    def __init__(self) -> None:
        self._head = ""
        self._arguments: ObjectScanner | None = None
        self.rest = ""
        """Text behind the arguments."""

    @property
    def begun(self) -> bool:
        """Return whether the call was given."""
        return self._arguments is not None

    @property
    def closed(self) -> bool:
        """Return whether its arguments are whole."""
        return self._arguments is not None and self._arguments.done

    def feed(self, text: str) -> AnswerParts:
        """Return the call with its first arguments, or more of them."""
        if self.closed:
            self.rest += text
            return AnswerParts()
        if self._arguments is not None:
            return AnswerParts(call_text=self._more(text))
        self._head += text
        found = _HEAD.match(self._head)
        try:
            name = json.loads(found[1]) if found else None
        except ValueError:  # an escape that is none
            name = None
        if found is None or name is None:
            return AnswerParts()
        self._arguments = ObjectScanner()
        return AnswerParts(calls=[ToolCall(name, self._more(self._head[found.end() :]))])

    def _more(self, text: str) -> str:
        count = self._arguments.scan(text) if self._arguments else 0
        self.rest += text[count:]
        return text[:count]


class CallListReader:
    """Reads a list of calls as it grows, such as an answer that must call tools."""

    def __init__(self) -> None:
        self._reader: CallReader | None = None
        self.begun = False
        """Set when a call was given."""

    def feed(self, text: str) -> AnswerParts:
        """Return what the text adds to calls."""
        parts = AnswerParts()
        while text:
            if self._reader is None:
                text = text.lstrip("[]},\n\t ")
                self._reader = CallReader() if text else None
            if self._reader is not None:
                parts += self._reader.feed(text)
                self.begun = self.begun or self._reader.begun
                text, closed = self._reader.rest, self._reader.closed
                self._reader = None if closed else self._reader
        return parts
