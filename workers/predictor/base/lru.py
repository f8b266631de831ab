"""Bounded stores by integer key that drop the least recently used entry."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LruDict(Generic[Value]):
    """Holds at most `limit` values by an integer key. Setting a key makes it the newest; reading does not."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[int, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __setitem__(self, key: int, value: Value) -> None:
        """Set a value, and drop the oldest values beyond the limit."""
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self._limit:
            self._values.popitem(last=False)

    def get(self, key: int) -> Value | None:
        """Return the value of a key, None if it was never set or was dropped."""
        return self._values.get(key)

    def newest_first(self) -> Iterator[Value]:
        """Yield all values, the newest first."""
        return reversed(self._values.values())


class LruLines:
    """Assigns each key a line of an array of `count` lines; the least recently opened key loses its line."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._line_of: OrderedDict[int, int] = OrderedDict()

    def find(self, key: int) -> int:
        """Return the line of a key, -1 if it has none."""
        return self._line_of.get(key, -1)

    def open(self, key: int) -> tuple[int, bool]:
        """Return the line of a key, now the newest key, and True if the line is new to it and has to be cleared."""
        line = self._line_of.pop(key, -1)
        fresh = line < 0
        if fresh:
            full = len(self._line_of) == self.count
            line = self._line_of.popitem(last=False)[1] if full else len(self._line_of)
        self._line_of[key] = line
        return line, fresh
