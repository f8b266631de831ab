"""Splits the reasoning at the start of an answer, `<think>…</think>`, from the rest, which another parser takes."""

from __future__ import annotations

from .markers import MarginTrimmer, MarkerSplitter
from .parts import AnswerParser, AnswerParts

BEGIN, END = "<think>", "</think>"


class ReasoningParser:
    """Parser of an answer that may begin with reasoning. Markers at other places are text."""

    def __init__(self, rest: AnswerParser, begun: bool = False) -> None:
        """`begun`: the prompt ends with the opening marker, so the answer begins inside of the reasoning."""
        self._rest = rest
        self._start: str | None = None if begun else ""
        """Text that may still become the opening marker; None if it is known what the answer begins with."""
        self._inside = begun
        self._splitter, self._trimmer = MarkerSplitter([END]), MarginTrimmer(after_marker=True)
        self._is_first = False
        """Set while the text behind the reasoning was nothing but white space, which is dropped."""

    def feed(self, text: str) -> AnswerParts:
        """Return the parts that this text completes."""
        if self._start is not None:
            text = self._read_start(self._start + text)
        return self._read_reasoning(text) if self._inside else self._feed_rest(text)

    def finish(self) -> AnswerParts:
        """Return the parts that are left."""
        parts = AnswerParts()
        if self._start:
            parts = self._rest.feed(self._start)
        elif self._inside:
            parts = AnswerParts(reasoning=self._trimmer.feed(self._splitter.finish()))
        return parts + self._rest.finish()

    def _read_start(self, text: str) -> str:
        """Return the text behind the opening marker, or all of it if it begins otherwise."""
        begin = text.lstrip()
        if len(begin) < len(BEGIN) and BEGIN.startswith(begin):
            self._start = text
            return ""
        self._start, self._inside = None, begin.startswith(BEGIN)
        return begin.removeprefix(BEGIN) if self._inside else text

    def _read_reasoning(self, text: str) -> AnswerParts:
        (reasoning, marker), *others = self._splitter.feed(text)
        parts = AnswerParts(reasoning=self._trimmer.feed(reasoning))
        if not marker:
            return parts
        self._inside, self._is_first = False, True
        rest = "".join(piece + mark for piece, mark in others) + self._splitter.finish()
        return parts + self._feed_rest(rest)

    def _feed_rest(self, text: str) -> AnswerParts:
        if self._is_first:
            text = text.lstrip()
            self._is_first = not text
        return self._rest.feed(text) if text else AnswerParts()
