"""What an expert is worth is worked out when something is heard of its use, not whenever a slot changes hands."""

from __future__ import annotations

import numpy as np
from expertflow.ipc.messages import Hint, Miss, Released, ResidentTable, StepPrediction
from expertflow.workers.loader.events import FillDone, StartFill
from expertflow.workers.loader.eviction import least_indices
from expertflow.workers.loader.ledger import Ledger
from expertflow.workers.loader.policies.popularity import Popularity
from hypothesis import given
from hypothesis import strategies as st

LAYERS, EXPERTS = 4, 8


class Watched(Popularity):
    """Counts how often it is asked."""

    asked = 0

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        self.asked += 1
        return super().worth(now, after)


def busy_ledger(fills_in_flight: int = 2) -> tuple[Ledger, Watched, list[int]]:
    """All slots are full or filling, and more is wanted; the slots that fill."""
    policy = Watched(LAYERS, EXPERTS, 2)
    ledger = Ledger(12, LAYERS, EXPERTS, 2, policy, fills_in_flight=fills_in_flight)
    ledger.handle(ResidentTable({slot: divmod(slot, EXPERTS) for slot in range(8)}))
    ledger.handle(StepPrediction(0, bytes([255]) * (LAYERS * EXPERTS)))
    ledger.handle(Miss(0, 1, [0, 1]))
    actions = ledger.handle(Hint(0, 2, bytes([255]) * EXPERTS))
    actions += [action for slot in range(8, 10) for action in ledger.handle(FillDone(slot))]
    return ledger, policy, [action.slot for action in actions if isinstance(action, StartFill)]


def test_slots_that_change_hands_ask_no_policy():
    """With many layers and experts that was most of the loader's work."""
    ledger, policy, filling = busy_ledger()
    ledger.handle(Released([0], 0, 1))
    before = policy.asked
    assert before and filling
    for slot in filling:
        ledger.handle(FillDone(slot))
    ledger.handle(Released([1], 0, 1))
    assert policy.asked == before


def test_news_of_use_asks_again():
    ledger, policy, _ = busy_ledger(fills_in_flight=12)
    before = policy.asked
    ledger.handle(Miss(0, 2, [0, 1, 2, 3, 4, 5]))
    assert policy.asked > before


@given(st.lists(st.integers(0, 5)), st.integers(1, 12))
def test_the_least_are_those_of_a_stable_sort(values: list[int], count: int):
    given = np.array(values, dtype=float)
    assert least_indices(given, count).tolist() == np.argsort(given, kind="stable")[:count].tolist()
