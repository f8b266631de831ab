"""How a ledger stands, in numbers."""

from __future__ import annotations

import msgspec


class LedgerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the start, except `free`, `filling` and `held`, which say how the slots stand now."""

    loads: int
    """Transfers that ended well; `prefetches` of them (and of the failed) began because of a prediction."""
    failed: int
    prefetches: int
    useful: int
    """Prefetches that their step, or a later one, used while they were there."""
    wasted: int
    promoted: int
    """Prefetches that came late: compute asked for the expert while it was filling."""
    evictions: int
    dropped: int
    """Predictions whose layer began before they were there."""
    invalid: int
    """Messages, or parts of them, that made no sense and were ignored."""
    free: int
    filling: int
    held: int
    accuracy: float
    """Of plans, over recent layers, as measured (calibration.py)."""
    wanted_chance: float
    """From which on an expert is brought in ahead, as it stands (advice.py)."""
    ranks_victims: int
    """1 while forecasts say who goes first, 0 while they only protect."""
