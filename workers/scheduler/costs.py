"""What steps and moved rows cost, measured while they happen."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...ipc.messages import Stepped

MEMORY_STEPS = 32
"""Older steps fade."""


@dataclass(slots=True)
class _Ratio:
    """A mean of `amount` per `count`, of the last steps mostly."""

    amount: float = 0.0
    count: float = 0.0

    def add(self, amount: float, count: float) -> None:
        fading = 1 - 1 / MEMORY_STEPS
        self.amount = fading * self.amount + amount
        self.count = fading * self.count + count

    @property
    def mean(self) -> float:
        return self.amount / self.count if self.count else 0.0


@dataclass(slots=True)
class Costs:
    """Of decode steps; all 0 until measured, so that what was never tried is tried once."""

    _expert: _Ratio = field(default_factory=_Ratio)
    _step: _Ratio = field(default_factory=_Ratio)
    _exchange: _Ratio = field(default_factory=_Ratio)

    def add(self, stepped: Stepped, exchanged: bool) -> None:
        """A decode step; `exchanged`: rows from other units joined it."""
        self._step.add(stepped.busy_ns, 1)
        self._expert.add(max(0, stepped.busy_ns - stepped.moved_ns), stepped.experts)
        if exchanged:
            self._exchange.add(stepped.moved_ns, 1)

    @property
    def step_ns(self) -> float:
        return self._step.mean

    @property
    def expert_ns(self) -> float:
        """All time of a step, loading included, by the experts it ran."""
        return self._expert.mean

    @property
    def exchange_ns(self) -> float:
        """Of moving rows, for each unit that gets other rows."""
        return self._exchange.mean

    def fade_exchange(self) -> None:
        """What was found too dear is believed a little less each time, so that it is tried again one day."""
        self._exchange.amount *= 1 - 1 / MEMORY_STEPS
