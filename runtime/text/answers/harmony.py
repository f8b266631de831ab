"""Answers of gpt-oss in the harmony format: messages with a channel, a recipient and a content.

The prompt ends with `<|start|>assistant`. Channel `analysis` is reasoning, `final` is for the user, and a message to
`functions.NAME` is a call of a tool; `commentary` without a recipient is for the user, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .markers import MarkerSplitter
from .parts import AnswerParts, ToolCall, make_call

_START, _MESSAGE = "<|start|>", "<|message|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>", _START)
_RECIPIENT = re.compile(r"to=(functions\.)?([\w.-]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


class HarmonyParser:
    """Parser of harmony's messages. Messages to other recipients are left out; text without any marker is content.

    With `streams` calls are given while they are written; otherwise one whose arguments are no object is content.
    """

    def __init__(self, streams: bool = False) -> None:
        self._streams, self._in_call = streams, False
        self._splitter = MarkerSplitter([_MESSAGE, *_ENDS])
        self._header = ""
        self._content: str | None = None
        """Content of the open message, as far as it is not shown yet; None inside of a header."""
        self._has_markers = False

    def feed(self, text: str) -> AnswerParts:
        """Return the parts that this text completes."""
        parts = AnswerParts()
        for piece, marker in self._splitter.feed(text):
            parts += self._read(piece, marker)
        return parts

    def finish(self) -> AnswerParts:
        """Return the parts that are left."""
        text = self._splitter.finish()
        return self._read(text, _START) if self._has_markers else AnswerParts(self._header + text)

    def _read(self, piece: str, marker: str) -> AnswerParts:
        self._has_markers = self._has_markers or bool(marker)
        if self._content is None:
            self._header += piece
            if marker == _MESSAGE:
                self._content, self._in_call = "", False
            elif marker:
                self._header = ""
            return AnswerParts()
        self._content += piece + (marker if marker == _MESSAGE else "")
        parts = self._show(is_whole=marker in _ENDS)
        if marker in _ENDS:
            self._header, self._content = "", None
        return parts

    def _show(self, is_whole: bool) -> AnswerParts:
        """Return what can be given of the open message: a call when it is whole, text at once."""
        content = self._content or ""
        if recipient := _RECIPIENT.search(self._header):
            if self._streams and recipient[1] is not None:
                return self._stream(recipient[2], content)
            is_call = is_whole and recipient[1] is not None
            return _read_call(recipient[2], content) if is_call else AnswerParts()
        self._content = ""
        channel = _CHANNEL.search(self._header)
        make = _BY_CHANNEL.get(channel[1] if channel else "final")
        return make(content) if make else AnswerParts()

    def _stream(self, name: str, arguments: str) -> AnswerParts:
        """Return the call with its first arguments, or more of them."""
        self._content = ""
        begun, self._in_call = self._in_call, True
        return AnswerParts(call_text=arguments) if begun else AnswerParts(calls=[ToolCall(name, arguments)])


_BY_CHANNEL: dict[str, Callable[[str], AnswerParts]] = {
    "analysis": lambda text: AnswerParts(reasoning=text),
    "commentary": AnswerParts,
    "final": AnswerParts,
}


def _read_call(name: str, content: str) -> AnswerParts:
    try:
        return AnswerParts(calls=[make_call(name, content)])
    except (ValueError, RecursionError):
        return AnswerParts(content)
