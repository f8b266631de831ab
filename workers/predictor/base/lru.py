"""Bounded memories of rows and tokens: what was not used for longest makes room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LruDict(Generic[Value]):
    """At most `limit` values by an integer key. Setting a key makes it the newest, reading does not."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[int, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __setitem__(self, key: int, value: Value) -> None:
        """Set a value, and drop the oldest ones beyond the limit."""
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self._limit:
            self._values.popitem(last=False)

    def get(self, key: int) -> Value | None:
        """Return the value of a key, None if it was never set or has been dropped."""
        return self._values.get(key)

    def newest_first(self) -> Iterator[Value]:
        """Return all values, the one that was set last first."""
        return reversed(self._values.values())


class LruLines:
    """Gives each key a line of an array of `count` lines; the key that was not opened for longest loses its own."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._line_of: OrderedDict[int, int] = OrderedDict()

    def find(self, key: int) -> int:
        """Return the line of a key, -1 if it has none."""
        return self._line_of.get(key, -1)

    def open(self, key: int) -> tuple[int, bool]:
        """Return the line of a key, now the newest, and whether it is fresh: then what it holds is another key's."""
        line = self._line_of.pop(key, -1)
        fresh = line < 0
        if fresh:
            full = len(self._line_of) == self.count
            line = self._line_of.popitem(last=False)[1] if full else len(self._line_of)
        self._line_of[key] = line
        return line, fresh
