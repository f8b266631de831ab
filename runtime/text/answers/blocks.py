"""Calls of tools in blocks between markers: Hermes and Qwen, Mistral, DeepSeek."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .call_stream import CallReader
from .markers import MarginTrimmer, MarkerSplitter
from .parts import AnswerParts, ToolCall, make_call


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """Format in which a family of models writes calls of tools."""

    begin: str
    end: str
    """Marker that ends a block; a block also ends with the next one, and with the answer."""
    read: Callable[[str], list[ToolCall]]
    """Reads the text of a block. Raises ValueError (KeyError, TypeError) if it holds no calls."""
    streams: bool = False
    """A block is one object with the name of the function before its arguments."""


class BlockParser:
    """Parser of text with blocks of calls. A block that holds no calls is text, with its markers.

    With `streams` calls are given while they are written, where the format lets them. What is wrong behind the
    arguments is text then, and an answer that is cut off has a call that is cut off.
    """

    def __init__(self, form: BlockFormat, streams: bool = False) -> None:
        self._form, self._streams = form, streams and form.streams
        self._reader = CallReader()
        self._splitter, self._trimmer = MarkerSplitter([form.begin, form.end]), MarginTrimmer()
        self._block: str | None = None
        """Text of the open block."""

    def feed(self, text: str) -> AnswerParts:
        """Return the parts that this text completes."""
        parts = AnswerParts()
        for piece, marker in self._splitter.feed(text):
            parts += self._read(piece, marker)
        return parts

    def finish(self) -> AnswerParts:
        """Return the parts that are left; an open block counts if it holds whole calls."""
        parts = self._read(self._splitter.finish(), "")
        if self._block is not None:
            parts += self._close("")
        return parts + AnswerParts(self._trimmer.finish())

    def _read(self, piece: str, marker: str) -> AnswerParts:
        if self._block is None:
            parts = AnswerParts(self._trimmer.feed(piece))
            if marker == self._form.end:
                return parts + AnswerParts(self._trimmer.feed(marker))
        else:
            self._block += piece
            parts = self._stream(piece)
            parts += self._close(marker) if marker else AnswerParts()
        if marker == self._form.begin:
            self._block, self._reader = "", CallReader()
        return parts

    def _stream(self, piece: str) -> AnswerParts:
        """Return what a piece of a block adds to its call."""
        parts = self._reader.feed(piece) if self._streams else AnswerParts()
        if parts.calls:
            self._trimmer.mark()
        return parts

    def _close(self, marker: str) -> AnswerParts:
        block, self._block = self._block or "", None
        if self._reader.begun:
            return AnswerParts(self._trimmer.feed(self._reader.rest.strip().removeprefix("}").strip()))
        try:
            calls = self._form.read(block)
        except (ValueError, KeyError, TypeError, RecursionError):
            end = marker if marker == self._form.end else ""
            return AnswerParts(self._trimmer.feed(self._form.begin + block + end))
        self._trimmer.mark()
        return AnswerParts(calls=calls)


def read_hermes(block: str) -> list[ToolCall]:
    """Read `{"name": …, "arguments": {…}}`."""
    return [_read_object(json.loads(block))]


def read_mistral(block: str) -> list[ToolCall]:
    """Read `[{"name": …, "arguments": {…}}, …]`, or `NAME[ARGS]{…}` of newer models."""
    name, divider, arguments = block.partition("[ARGS]")
    if divider:
        return [make_call(name.partition("[CALL_ID]")[0].strip(), arguments)]
    calls = json.loads(block)
    if not isinstance(calls, list) or not calls:
        raise ValueError("no list of calls")
    return [_read_object(call) for call in calls]


_DEEPSEEK_CALL = re.compile(r"<｜tool▁call▁begin｜>(.*?)<｜tool▁sep｜>(.*?)<｜tool▁call▁end｜>", re.DOTALL)
_FENCED = re.compile(r"(\S+)\s*```json\s*(.*?)\s*```\s*", re.DOTALL)


def read_deepseek(block: str) -> list[ToolCall]:
    """Read calls of V3.1 (name, separator, arguments) and of V3 and R1 (kind, separator, name, fenced arguments)."""
    calls = []
    for head, body in _DEEPSEEK_CALL.findall(block):
        fenced = _FENCED.fullmatch(body)
        name, arguments = fenced.groups() if fenced else (head.strip(), body)
        calls.append(make_call(name, arguments))
    if not calls:
        raise ValueError("no calls")
    return calls


def _read_object(call: Any) -> ToolCall:
    return make_call(call["name"], call.get("arguments", call.get("parameters", {})))


HERMES = BlockFormat("<tool_call>", "</tool_call>", read_hermes, streams=True)
MISTRAL = BlockFormat("[TOOL_CALLS]", "</s>", read_mistral)
DEEPSEEK = BlockFormat("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", read_deepseek)
