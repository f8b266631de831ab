"""The virtual clock and the events that can happen. A seed chooses their times; a script chooses them by name.

Nothing else in a history is left to chance: the same order of the same names gives the same history.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TAIL = 100
"""Factor of a delay that is unusually long."""


class Broken(Exception):
    """A promise of the engine was broken, or a script asks for what is not possible."""


def require(condition: bool, check: str, what: str) -> None:
    """Raise Broken that names the check unless `condition` holds."""
    if not condition:
        raise Broken(f"{check}: {what}")


@dataclass(slots=True, eq=False)
class Pending:
    """An event that can happen. `act` returns what happened, for the script; None: nothing to say."""

    name: str
    act: Callable[[], Any]
    due_us: int
    cancelled: bool = False


class Agenda:
    """Pending events in the order of their times, which a seed draws."""

    def __init__(self, seed: int, tail: float) -> None:
        self.now_us = 0
        self.log: list[tuple[int, str, Any]] = []
        """(time, name, detail) of all that happened."""
        self._heap: list[tuple[int, int, Pending]] = []
        self._count = 0
        self._random = random.Random(seed ^ 0x5EED).random
        self._tail = tail

    def after(self, name: str, act: Callable[[], Any], low_us: int, high_us: int, may_be_late: bool = True) -> Pending:
        """Let an event happen after a delay between the two, or one that is `TAIL` times as long."""
        return self.at(name, act, self.now_us + self.delay(low_us, high_us, may_be_late))

    def delay(self, low_us: int, high_us: int, may_be_late: bool = True) -> int:
        """Return a delay between the two, or one that is `TAIL` times as long."""
        delay = low_us + int((high_us - low_us) * self._random())
        late = may_be_late and self._tail and self._random() < self._tail
        return delay * TAIL if late else delay

    def at(self, name: str, act: Callable[[], Any], due_us: int) -> Pending:
        """Let an event happen at a time, or now if that has passed."""
        self._count += 1
        pending = Pending(name, act, due_us)
        heapq.heappush(self._heap, (due_us, self._count, pending))
        return pending

    def step(self) -> bool:
        """Let the next event happen; return False if there is none."""
        while self._heap:
            pending = heapq.heappop(self._heap)[2]
            if not pending.cancelled:
                self.now_us = max(self.now_us, pending.due_us)
                self.perform(pending)
                return True
        return False

    def perform(self, pending: Pending) -> None:
        """Let one event happen, and log it before: it may break."""
        pending.cancelled = True
        entry, began_us = len(self.log), self.now_us
        self.log.append((began_us, pending.name, None))
        detail = pending.act()
        if detail is not None:
            self.log[entry] = (began_us, pending.name, detail)


class ScriptedAgenda(Agenda):
    """Pending events by name; a script says which happens next, and when.

    Not `exact`: a line that is not possible is left out, and what is pending after the last line happens in the order
    of time. So a script from before a change of the engine still brings it near the place of the fault.
    """

    def __init__(self, lines: list[tuple[int, str]], exact: bool = True) -> None:
        super().__init__(0, 0.0)
        self._lines = deque(lines)
        self._exact = exact
        self._pending: defaultdict[str, deque[Pending]] = defaultdict(deque)

    def at(self, name: str, act: Callable[[], Any], due_us: int) -> Pending:
        pending = super().at(name, act, due_us)
        self._pending[name].append(pending)
        return pending

    def step(self) -> bool:
        """Let the event of the next line happen. Raises Broken if it is not possible."""
        while self._lines:
            now_us, name = self._lines.popleft()
            waiting = self._pending[name]
            while waiting and waiting[0].cancelled:
                waiting.popleft()
            require(bool(waiting) or not self._exact, "script", f"not possible at {now_us / 1e6:.6f}: {name}")
            if waiting:
                self.now_us = now_us
                self.perform(waiting.popleft())
                return True
        return not self._exact and super().step()
