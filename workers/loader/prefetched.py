"""Experts that were brought in because of a prediction, until it is known whether the prediction was right."""

from __future__ import annotations

from collections.abc import Iterator, Set


class Prefetched:
    """Key → the tick for which it was brought, for each prefetch that is not judged yet."""

    def __init__(self) -> None:
        self._due: dict[int, int] = {}
        self._finished = -1
        self.useful = 0
        self.wasted = 0

    def bring(self, key: int, due: int) -> None:
        self._due[key] = due

    def void(self, key: int) -> bool:
        """No prefetch any more (compute asked for it, or the transfer failed); whether it was one."""
        return self._due.pop(key, None) is not None

    def evicted(self, key: int, position: int) -> None:
        """Gone before its layer began: wasted. If the layer has begun, the step's routing will tell."""
        due = self._due.get(key)
        if due is not None and (due > position or due <= self._finished):
            del self._due[key]
            self.wasted += 1

    def judge(self, used: Set[int], resident: Set[int], tick: int) -> None:
        """A step has used these experts and ended at `tick`."""
        self._finished = max(self._finished, tick)
        for key in self._due.keys() & used:
            del self._due[key]
            self.useful += 1
        for key in [key for key, due in self._due.items() if due <= tick and key not in resident]:
            del self._due[key]
            self.wasted += 1

    def waiting(self, position: int) -> int:
        """How many still wait for their layer."""
        return sum(due > position for due in self._due.values())

    def wrong(self) -> Iterator[int]:
        """Keys whose step is over and that it did not use."""
        return (key for key, due in self._due.items() if due <= self._finished)

    def pending(self, position: int) -> Iterator[int]:
        """Keys whose layer has not begun."""
        return (key for key, due in self._due.items() if due > position)
