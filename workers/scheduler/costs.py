"""What steps and moved rows cost, measured while they happen."""

from __future__ import annotations

from collections import deque
from statistics import median

from ...ipc.messages import Stepped

STEPS = 32
EXCHANGES = 16
"""How many of the last ones are remembered."""


class Costs:
    """Of decode steps; 0 until measured, so that what was never tried is tried once."""

    def __init__(self) -> None:
        self._steps: deque[Stepped] = deque(maxlen=STEPS)
        self._exchanges: deque[int] = deque(maxlen=EXCHANGES)

    def add(self, stepped: Stepped, exchanged: bool) -> None:
        """A decode step; `exchanged`: rows from other units joined it."""
        self._steps.append(stepped)
        if exchanged:
            self._exchanges.append(stepped.moved_ns)

    @property
    def step_ns(self) -> float:
        return median(step.busy_ns for step in self._steps) if self._steps else 0.0

    @property
    def expert_ns(self) -> float:
        """The time of a step, loading included, by the experts it ran."""
        return median(step.busy_ns / max(1, step.experts) for step in self._steps) if self._steps else 0.0

    @property
    def exchange_ns(self) -> float:
        """Of moving rows, for each unit that gets other rows. A median: the machine does other things as well."""
        return median(self._exchanges) if self._exchanges else 0.0

    def forget_exchange(self) -> None:
        """What was found too dear is believed a little less each time, so that it is tried again one day."""
        if self._exchanges:
            self._exchanges.popleft()
