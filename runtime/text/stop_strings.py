"""Ends a growing output at its first stop string.

What is shown, and where the output ends, are functions of the output's tokens alone: not of the pieces in which the
tokens arrive, and not of what died meanwhile. A stop string may span tokens and characters of several tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .codec import TextStream


@dataclass(frozen=True, slots=True)
class StopRule:
    """Stop strings of a request, none of them empty."""

    strings: tuple[str, ...]
    include: bool = False
    """Keep the stop string at the end of the text."""
    min_new_tokens: int = 0
    """A stop string counts only if it ends after the text of so many tokens."""


class StopMatch(NamedTuple):
    """A stop string in a text: the positions where it ends and starts, and the string. Compares by these in turn."""

    end: int
    start: int
    string: str


def first_match(text: str, strings: Sequence[str], lowest_end: int) -> StopMatch | None:
    """Return the stop string that ends first, at `lowest_end` or later; of those that end together, the longest."""
    starts = [(text.find(string, max(0, lowest_end - len(string))), string) for string in strings]
    return min((StopMatch(start + len(string), start, string) for start, string in starts if start >= 0), default=None)


def held_length(text: str, strings: Sequence[str]) -> int:
    """Return the length of the longest end of the text that a stop string may begin with, a whole one left out."""
    longest = max(map(len, strings), default=1) - 1
    for start in range(max(0, len(text) - longest), len(text)):
        end = text[start:]
        if any(len(end) < len(string) and string.startswith(end) for string in strings):
            return len(text) - start
    return 0


class StoppingText:
    """Text of a growing output up to its first stop string. Text that may begin one is held back until it does not.

    All texts that `take` returns add up to the whole text: nothing that was shown is taken back.
    """

    def __init__(self, stream: TextStream, rule: StopRule) -> None:
        self._rule, self._stream = rule, stream
        self._longest = max(map(len, rule.strings), default=1)
        self._text = ""
        self._searched = 0
        """Length of the text in which no stop string ends that counts."""
        self._tokens = 0
        self._taken = 0
        self._done = False
        self.match: StopMatch | None = None
        """The stop string that ended the text, if any."""

    @property
    def token_count(self) -> int:
        """Return how many tokens were read: with a match, those up to the one that completes the stop string."""
        return self._tokens

    def read(self, token_ids: Sequence[int], done: bool = False) -> None:
        """Read on, given all tokens so far; `done`: there will be no others. Does nothing after a match."""
        while self.match is None and self._tokens < len(token_ids):
            self._tokens += 1
            self._append(self._stream.advance(token_ids, self._tokens))
        if done and not self._done and self.match is None:
            self._append(self._stream.finish(token_ids))
        self._done = self._done or done

    def take(self) -> str:
        """Return the text that can be shown and was not returned before."""
        held = 0 if self._ended or self._rule.include else held_length(self._text, self._rule.strings)
        fresh = self._text[self._taken : len(self._text) - held]
        self._taken += len(fresh)
        return fresh

    @property
    def text(self) -> str:
        """Return the whole text so far, with what is held back."""
        return self._text

    @property
    def _ended(self) -> bool:
        return self._done or self.match is not None

    def _append(self, piece: str) -> None:
        self._text += piece
        if self._tokens > self._rule.min_new_tokens:
            self._search()
        self._searched = len(self._text)

    def _search(self) -> None:
        offset = max(0, self._searched - self._longest + 1)
        found = first_match(self._text[offset:], self._rule.strings, self._searched + 1 - offset)
        if found is not None:
            self.match = StopMatch(found.end + offset, found.start + offset, found.string)
            self._text = self._text[: self.match.end if self._rule.include else self.match.start]
