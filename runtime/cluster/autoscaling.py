"""The number of replicas that a load asks for, from queue age and stall share, within bounds. Pure.

The age of the queue says that work waits. The stall share says that replicas wait for experts, which more replicas
cure under routing by experts: each one then holds fewer domains. Busy rows alone say neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from ...errors import UsageError


class ScalingBounds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the number of replicas, and what raises and lowers it."""

    min_replicas: int = 1
    max_replicas: int = 1
    queue_age_s: float = 5.0
    """Age of the queue above which replicas are added."""
    stall_share: float = 0.5
    """Share of stalls in compute's time above which one replica is added, while all rows are busy."""
    idle_share: float = 0.3
    """Share of busy rows below which one replica is removed, while nothing waits."""
    up_after_s: float = 10.0
    down_after_s: float = 300.0
    """Time for which a reason must hold without a break."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            what = f"must be from 1 to max_replicas ({self.max_replicas}), not {self.min_replicas}"
            raise UsageError(what, "min_replicas", "Give bounds with 1 <= min_replicas <= max_replicas")


@dataclass(frozen=True, kw_only=True)
class LoadSignal:
    """Load of the cluster at one moment."""

    queue_age_s: float
    stall_shares: Sequence[float]
    """Stall share of each replica."""
    busy_share: float
    """Requests at replicas ÷ rows of all replicas."""


@dataclass
class Autoscaler:
    """Returns the wanted number of replicas; call `target` about once a second."""

    bounds: ScalingBounds
    _up_since_s: float | None = field(default=None, init=False)
    _down_since_s: float | None = field(default=None, init=False)

    def target(self, current: int, signal: LoadSignal, now_s: float) -> int:
        """Return how many replicas there should be; `current` is the number that is wanted now.

        After each change a reason must hold again for its whole time. An old queue adds half as many as there are.
        """
        bounds = self.bounds
        many = self._wants_more(current, signal)
        idle = signal.queue_age_s <= 0 and signal.busy_share < bounds.idle_share
        self._up_since_s = _since(self._up_since_s, many > 0, now_s)
        self._down_since_s = _since(self._down_since_s, idle, now_s)
        wanted = current
        if self._up_since_s is not None and now_s - self._up_since_s >= bounds.up_after_s:
            wanted, self._up_since_s = current + many, None
        elif self._down_since_s is not None and now_s - self._down_since_s >= bounds.down_after_s:
            wanted, self._down_since_s = current - 1, None
        return min(max(wanted, bounds.min_replicas), bounds.max_replicas)

    def _wants_more(self, current: int, signal: LoadSignal) -> int:
        """Return how many replicas the load asks for."""
        if signal.queue_age_s > self.bounds.queue_age_s:
            return max(1, current // 2)
        shares = signal.stall_shares
        stalls = sum(shares) / len(shares) if shares else 0.0
        return int(stalls > self.bounds.stall_share and signal.busy_share >= 1.0)


def _since(since_s: float | None, holds: bool, now_s: float) -> float | None:
    """Return since when a reason holds; None if it does not."""
    if not holds:
        return None
    return now_s if since_s is None else since_s
