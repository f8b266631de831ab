"""Cuts a growing text at markers such as `<tool_call>`, and trims the white space beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..stop_strings import first_match, held_length


class MarkerSplitter:
    """Splits a growing text at markers; text that may begin a marker is held back until it does not."""

    def __init__(self, markers: Sequence[str]) -> None:
        self._markers = markers
        self._held = ""

    def feed(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield pairs of a text and the marker behind it; the last pair has an empty marker."""
        text, self._held = self._held + text, ""
        while (found := first_match(text, self._markers, 1)) is not None:
            yield text[: found.start], found.string
            text = text[found.end :]
        shown = len(text) - held_length(text, self._markers)
        self._held = text[shown:]
        yield text[:shown], ""

    def finish(self) -> str:
        """Return the text that was held back."""
        text, self._held = self._held, ""
        return text


class MarginTrimmer:
    """Drops white space beside markers; other text is passed on as it is."""

    def __init__(self, after_marker: bool = False) -> None:
        self._after_marker = after_marker
        self._space = ""

    def feed(self, text: str) -> str:
        """Return the text without the space that may come before a marker, and without that after one."""
        if self._after_marker:
            text = text.lstrip()
            self._after_marker = not text
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        return kept

    def mark(self) -> None:
        """Drop the space around a marker."""
        self._space, self._after_marker = "", True

    def finish(self) -> str:
        """Return the space at the end of the answer."""
        space, self._space = self._space, ""
        return space
