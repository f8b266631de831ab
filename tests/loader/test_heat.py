"""What watchers see of the cache: where every expert is, and the share of recent steps that used it."""

from __future__ import annotations

import numpy as np
from expertflow.workers.loader.slots import COMING, GOING, HELD, NOW, SlotTable
from expertflow.workers.loader.use_shares import MEMORY_STEPS, UseShares


def test_the_state_of_an_expert_follows_its_slot() -> None:
    table = SlotTable(2, layers=1, experts=3)
    slot = table.start(1, urgent=False)
    assert table.residence().tolist() == [0, COMING, 0]
    table.hold(slot)
    assert table.residence().tolist() == [0, HELD, 0]
    table.recall(slot, NOW)
    assert table.residence().tolist() == [0, GOING, 0]
    table.release(slot)
    assert table.residence().tolist() == [0, 0, 0]


def test_use_is_the_share_of_recent_steps() -> None:
    use = UseShares(3)
    assert len(use.scaled()) == 0
    for step in range(4000):
        use.add(np.array([0, 1] if step % 2 else [0]))
    always, half, never = use.scaled()
    assert (always, never) == (255, 0) and abs(half - 128) <= 2
    for _ in range(MEMORY_STEPS):
        use.add(np.array([2]))
    assert abs(use.scaled()[0] - 255 / np.e) < 3, "a use fades with the steps that follow it"


def test_counts_stay_finite() -> None:
    """Weights grow by a factor a step: without care an engine of a week would overflow."""
    use = UseShares(2)
    for _ in range(200_000):
        use.add(np.array([0]))
    assert use.scaled().tolist() == [255, 0]
