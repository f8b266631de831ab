"""The time that a measurement may take."""

from __future__ import annotations

import time
from collections.abc import Iterator


class Budget:
    """Minutes that run from now on. Rounds end before one that would not fit."""

    def __init__(self, minutes: float) -> None:
        self._end_s = time.monotonic() + 60 * minutes

    @property
    def left_s(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, self._end_s - time.monotonic())

    def part(self, parts: int) -> Budget:
        """Return a budget of one of so many equal parts of the time that is left, from now on."""
        return Budget(self.left_s / parts / 60)

    def rounds(self, most: int, least: int = 1) -> Iterator[int]:
        """Yield 0, 1, … below `most` as long as another round fits that lasts as long as the longest so far.

        The first `least` come in any case: without them there is no figure.
        """
        longest_s = 0.0
        for number in range(most):
            if number >= least and longest_s > self.left_s:
                return
            begun_s = time.monotonic()
            yield number
            longest_s = max(longest_s, time.monotonic() - begun_s)
