"""Statistics of a ledger."""

from __future__ import annotations

import msgspec


class LedgerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the start; `free`, `filling` and `held` count slots now, the last three are the current state."""

    loads: int
    """Transfers that ended well."""
    failed: int
    """Transfers that failed."""
    prefetches: int
    """Transfers that began because of a prediction, well ended or failed."""
    useful: int
    """Prefetches that their step, or a later one, used while they were resident."""
    wasted: int
    """Prefetches that were evicted before any step used them."""
    promoted: int
    """Prefetches that came late: compute asked for the expert while it was filling."""
    evictions: int
    """Slots that compute returned."""
    dropped: int
    """Predictions whose layer began before the expert was resident."""
    invalid: int
    """Messages, or parts of them, that made no sense and were ignored."""
    predicted: int = 0
    """Experts that predictions called likely (a chance of 0.5 or more), in layers that ran and had a prediction."""
    late: int = 0
    """Predictions and hints that came when their step, or layer, had begun."""
    needed: int = 0
    """Experts that these layers used."""
    predicted_needed: int = 0
    """Experts that were both; so precision and recall can be had of any time."""
    free: int
    filling: int
    held: int
    accuracy: float
    """Measured F1 of predictions over recent layers, 0 to 1 (calibration.py)."""
    wanted_chance: float
    """Current least chance of use, 0 to 1, for which an expert is prefetched (prefetch_plan.py)."""
    ranks_victims: int
    """1 while predictions rank eviction victims, 0 while they only protect."""
