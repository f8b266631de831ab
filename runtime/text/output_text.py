"""The text of a request's output, as it grows and as a whole, with or without stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from .codec import TextStream
from .stop_strings import StoppingText, StopRule


class OutputText:
    """Text of one output. Without stop strings tokens are decoded only when their text is wanted."""

    def __init__(self, stream: TextStream, rule: StopRule | None = None) -> None:
        self._stream = stream
        self._stopping = StoppingText(stream, rule) if rule is not None and rule.strings else None

    @property
    def stop_string(self) -> str | None:
        """Return the stop string that has ended the output; None: it has not ended by one."""
        match = self._stopping.match if self._stopping else None
        return match.string if match else None

    def read(self, token_ids: Sequence[int], done: bool) -> int | None:
        """Look for a stop string, given all tokens so far; `done`: there will be no others.

        Returns how many tokens the output has up to the end of its first stop string; None: there is none.
        """
        if self._stopping is None:
            return None
        self._stopping.read(token_ids, done)
        return self._stopping.token_count if self._stopping.match else None

    def delta(self, token_ids: Sequence[int], done: bool) -> str:
        """Return the new text to show, given all tokens so far; with `done` everything that is left."""
        if self._stopping is None:
            return self._stream.delta(token_ids, done)
        self._stopping.read(token_ids, done)
        return self._stopping.take()

    def whole(self, token_ids: Sequence[int]) -> str:
        """Return the whole text of an output that has ended."""
        if self._stopping is None:
            return self._stream.whole(token_ids)
        self._stopping.read(token_ids, done=True)
        return self._stopping.text
