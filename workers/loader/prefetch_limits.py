"""Limits of what the loader may have under way, and how they follow from the slots."""

from __future__ import annotations

from typing import NamedTuple

SPARE_SLOTS = 1
"""By replay 1 gains most: 2 % of a step at batch 1, and each further slot costs more hits than it saves waiting."""
MIN_SLOTS_TO_SPARE = 8
"""Slots, as a multiple of top-k, from which on one is spared: with fewer it is needed for experts."""
MIN_MISSES_AHEAD = 2
"""By timed replay at batch 8: 8 % fewer loads than when all victims of a layer are recalled as it begins."""
PREFETCHED_SHARE = 0.25
"""Share of the slots for prefetches whose layer has not begun: one that is fetched early costs a hit elsewhere."""


class PrefetchLimits(NamedTuple):
    """Limits of what may be under way."""

    fills_in_flight: int
    """Transfers at a time, besides as many urgent ones."""
    recalls_ahead: int
    """Slots that are free or recalled in favour of prefetches."""
    prefetches: int
    """Prefetched experts whose layer has not begun (R5)."""
    misses_ahead: int
    """Slots that are free or recalled in favour of missing experts whose transfers cannot start yet. What is computed
    meanwhile may be a better victim than what was held when the layer began."""
    spare: int = 0
    """Slots kept free for the next miss while there are predictions: its transfer then waits for no recall."""


def choose_limits(slots: int, keys: int, top_k: int, fills_in_flight: int, on_device: bool) -> PrefetchLimits:
    """Return the limits for so many slots and experts (`keys`, of all layers).

    On a device compute returns slots when it has enqueued a layer, so all victims of a miss are recalled at once.
    """
    useful = max(round(PREFETCHED_SHARE * slots), 2 * fills_in_flight, 3 * top_k)
    return PrefetchLimits(
        fills_in_flight=fills_in_flight,
        recalls_ahead=max(fills_in_flight, top_k),
        prefetches=slots if slots >= keys else min(useful, max(slots - max(top_k, 1), 0)),
        misses_ahead=keys if on_device else max(fills_in_flight // 2, MIN_MISSES_AHEAD),
        spare=SPARE_SLOTS * (slots >= MIN_SLOTS_TO_SPARE * top_k),
    )
