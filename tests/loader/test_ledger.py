"""The loader's core alone: what it asks for, in which order, and what it refuses to believe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from expertflow.ipc.messages import (
    Cause,
    Filled,
    Hint,
    Miss,
    Recall,
    Released,
    ResidentTable,
    StepPrediction,
    StepRouting,
)
from expertflow.workers.loader.events import ComputeJoined, FillDone, PromoteFill, StartFill
from expertflow.workers.loader.ledger import Ledger

LAYERS, EXPERTS, TOP_K = 4, 8, 2


class LooseLedger(Ledger):
    """Spares the tests from telling the type checker which action they expect."""

    def handle(self, event: Any) -> list[Any]:
        return [*super().handle(event)]


def ledger_of(slots: int, held: Iterable[tuple[int, int]] = (), fills_in_flight: int = 2) -> LooseLedger:
    """A ledger whose first slots are held by compute with these experts."""
    ledger = LooseLedger(slots, LAYERS, EXPERTS, TOP_K, fills_in_flight=fills_in_flight)
    ledger.handle(ResidentTable(dict(enumerate(held))))
    return ledger


def plan_of(step: int, wanted: dict[tuple[int, int], int]) -> StepPrediction:
    scores = np.zeros((LAYERS, EXPERTS), np.uint8)
    for place, score in wanted.items():
        scores[place] = score
    return StepPrediction(step, scores.tobytes())


def used_of(step: int, experts: list[int]) -> StepRouting:
    """One token that used the same two experts in every layer."""
    routing = np.array([[experts] * LAYERS], np.uint16).tobytes()
    return StepRouting(
        step=step, token_ids=[1], rows=[0], positions=[0], top_k=TOP_K, experts=routing, hits=0, misses=0, stall_ns=0
    )


def kinds(actions: list[Any], kind: type) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def experts_of(actions: list[Any]) -> list[tuple[int, int]]:
    return [(action.layer, action.expert) for action in kinds(actions, StartFill)]


def test_nothing_is_filled_before_compute_has_said_what_it_holds() -> None:
    """R9: otherwise a new loader writes into slots that are read."""
    ledger = LooseLedger(4, LAYERS, EXPERTS, TOP_K)
    assert ledger.handle(Miss(0, 0, [1])) == []
    assert experts_of(ledger.handle(ResidentTable({0: (0, 3)}, Miss(0, 0, [1, 2])))) == [(0, 1), (0, 2)]


def test_a_need_takes_free_slots_first() -> None:
    actions = ledger_of(4, held=[(3, 0)]).handle(Miss(0, 0, [5, 6]))
    assert experts_of(actions) == [(0, 5), (0, 6)]
    assert not kinds(actions, Recall)


def test_a_need_without_free_slots_recalls_as_many_as_readers_can_fill_at_once() -> None:
    """One message, so one round trip; nothing is evicted beyond what is needed, nor before it can be filled."""
    ledger = ledger_of(5, held=[(3, 0), (3, 1), (3, 2), (3, 3), (0, 4)], fills_in_flight=4)
    (recall,) = ledger.handle(Miss(0, 0, [5, 6, 7]))
    assert isinstance(recall, Recall) and len(recall.slots) == 2 and recall.step == -1
    actions = ledger.handle(Released(recall.slots, 0, 0))
    assert experts_of(actions) == [(0, 5), (0, 6)]
    (rest,) = kinds(actions, Recall)
    assert len(rest.slots) == 1 and not set(rest.slots) & set(recall.slots)
    assert experts_of(ledger.handle(Released(rest.slots, 0, 0))) == [(0, 7)]


def test_while_there_are_predictions_a_slot_is_spared_for_the_next_miss() -> None:
    """So its transfer does not wait for a recall. Without predictions, policies evict at misses alone."""
    held = [(layer, expert) for layer in (2, 3) for expert in range(EXPERTS)]
    unpredicted, ledger = ledger_of(16, held), ledger_of(16, held)
    assert unpredicted.handle(Miss(0, 0, [])) == []
    (recall,) = ledger.handle(plan_of(0, {(2, 0): 255}))
    assert isinstance(recall, Recall) and len(recall.slots) == 1 and recall.step == -1
    assert recall.slots != [0], "it is predicted"
    assert ledger.handle(Released(recall.slots, 0, 0)) == []
    assert experts_of(ledger.handle(Miss(0, 0, [5]))) == [(0, 5)]


def test_no_predicted_expert_makes_room_for_a_spare_slot() -> None:
    """It would be prefetched into the spare slot, and recalled again, for ever."""
    held = [(layer, expert) for layer in (2, 3) for expert in range(EXPERTS)]
    assert ledger_of(16, held).handle(plan_of(0, dict.fromkeys(held, 255))) == []


def test_a_ledger_of_few_slots_spares_none() -> None:
    held = [(layer, expert) for layer in (2, 3) for expert in range(EXPERTS)][:-1]
    assert ledger_of(15, held).handle(plan_of(0, {(2, 0): 255})) == []


def test_given_slots_are_filled_at_once_and_no_slot_is_recalled_twice() -> None:
    ledger = ledger_of(2, held=[(3, 0), (3, 1)], fills_in_flight=1)
    (recall,) = ledger.handle(Miss(0, 0, [5, 6]))
    assert kinds(ledger.handle(Miss(0, 0, [5, 6])), Recall) == []
    assert experts_of(ledger.handle(Released(recall.slots, 0, 0))) == [(0, 5)]


def test_a_need_for_a_filling_expert_promotes_that_fill() -> None:
    """R6: nothing is filled twice, and what was prefetched late becomes urgent."""
    ledger = ledger_of(8)
    (start, *_) = ledger.handle(plan_of(0, {(1, 4): 255}))
    assert (start.layer, start.expert, start.urgent) == (1, 4, False)
    assert ledger.handle(Miss(0, 1, [4])) == [PromoteFill(start.slot)]
    assert ledger.handle(Miss(0, 1, [4])) == []
    assert ledger.statistics().promoted == 1


def test_a_need_does_not_wait_behind_prefetches() -> None:
    """R6: an urgent transfer starts although prefetches have all places in flight, and no prefetch starts beside it."""
    ledger = ledger_of(8, fills_in_flight=2)
    started = kinds(ledger.handle(plan_of(0, {(1, expert): 255 for expert in range(5)})), StartFill)
    assert len(started) == 2
    (urgent,) = kinds(ledger.handle(Miss(0, 0, [7])), StartFill)
    assert urgent.urgent
    assert kinds(ledger.handle(FillDone(started[0].slot)), StartFill) == []
    assert kinds(ledger.handle(FillDone(started[1].slot)), StartFill) == []
    assert experts_of(ledger.handle(FillDone(urgent.slot))) == [(1, 2), (1, 3)]


def test_prefetches_go_by_layer_then_probability() -> None:
    """R5: the first due first; within a layer the likeliest first; the unlikely not at all."""
    ledger = ledger_of(16, fills_in_flight=9)
    wanted = {(2, 0): 255, (1, 3): 130, (1, 4): 200, (0, 1): 127, (0, 2): 100}
    assert experts_of(ledger.handle(plan_of(0, wanted))) == [(0, 1), (1, 4), (1, 3), (2, 0)]


def test_the_nearest_step_goes_first() -> None:
    ledger = ledger_of(16, fills_in_flight=1)
    (first,) = ledger.handle(plan_of(1, {(0, 0): 255}))
    assert ledger.handle(plan_of(0, {(3, 3): 255})) == []
    (announced, second) = ledger.handle(FillDone(first.slot))
    assert announced == Filled(first.slot, 0, 0, Cause("prediction", 1, 0))
    assert (second.layer, second.expert) == (3, 3)


@pytest.mark.parametrize(("slots", "prefetched"), [(1, 0), (2, 0), (3, 1), (6, 4)])
def test_prefetches_leave_slots_for_needs(slots: int, prefetched: int) -> None:
    """R5: prefetched and not yet needed ≤ S − top-k; with S ≤ top-k there is no prefetch at all."""
    ledger = ledger_of(slots, fills_in_flight=9)
    everything = {(layer, expert): 255 for layer in range(LAYERS) for expert in range(EXPERTS)}
    assert len(experts_of(ledger.handle(plan_of(0, everything)))) == prefetched


def test_a_passed_prefetch_makes_room_for_another() -> None:
    ledger = ledger_of(3, fills_in_flight=9)
    (start, *_) = ledger.handle(plan_of(0, {(1, 0): 255, (2, 0): 255}))
    assert experts_of(ledger.handle(FillDone(start.slot))) == []
    assert experts_of(ledger.handle(Released([], 0, 1))) == [(2, 0)]


def test_predictions_of_layers_that_have_begun_are_dropped() -> None:
    """R5: bringing them in would be too late."""
    ledger = ledger_of(16, fills_in_flight=9)
    ledger.handle(Released([], 3, 1))
    assert experts_of(ledger.handle(plan_of(3, {(1, 0): 255, (2, 0): 255}))) == [(2, 0)]
    ledger.handle(plan_of(4, {(3, 7): 255}))
    assert ledger.statistics().dropped == 0


def test_slots_roll_forward_after_their_last_foretold_use() -> None:
    """R3: what layer 1 still uses is asked for ahead, for after layer 1."""
    ledger = ledger_of(4, held=[(1, 0), (1, 1), (3, 0), (3, 1)])
    wanted = {(1, 0): 255, (1, 1): 255, (3, 0): 255, (3, 1): 255, (2, 5): 255}
    (recall,) = ledger.handle(plan_of(0, wanted))
    assert (recall.step, recall.layer) == (0, 1)
    assert recall.slots[0] in (0, 1)
    assert experts_of(ledger.handle(Released(recall.slots, 0, 1))) == [(2, 5)]


def test_a_prefetch_never_evicts_what_is_due_with_it() -> None:
    """Two experts of one layer would evict each other for ever."""
    ledger = ledger_of(4, held=[(2, 0), (2, 1), (2, 2), (2, 3)])
    assert ledger.handle(plan_of(0, {(2, expert): 255 - expert for expert in range(5)})) == []


def test_a_need_evicts_what_no_plan_wants_then_what_is_due_last() -> None:
    ledger = ledger_of(4, held=[(1, 0), (2, 0), (3, 0), (1, 1)])
    ledger.handle(plan_of(0, {(1, 0): 255, (2, 0): 255, (3, 0): 255}))
    (recall,) = ledger.handle(Miss(0, 0, [4, 5]))
    assert recall.slots == [3, 2]


def test_a_wrong_prediction_is_the_first_to_go() -> None:
    """R5: a prefetched expert that its step did not use makes room before any that is used now and then."""
    ledger = ledger_of(4, held=[(3, 0), (3, 1)], fills_in_flight=9)
    for step in range(6):
        ledger.handle(used_of(step, [0, 1]))
    wrong = kinds(ledger.handle(plan_of(6, {(3, 5): 255, (3, 6): 255})), StartFill)
    for start in wrong:
        ledger.handle(FillDone(start.slot))
    ledger.handle(used_of(6, [0, 1]))
    (recall,) = ledger.handle(Miss(7, 0, [4, 5]))
    assert sorted(recall.slots) == sorted(start.slot for start in wrong)
    ledger.handle(Released(recall.slots, 7, 0))
    assert (ledger.statistics().useful, ledger.statistics().wasted) == (0, 2)


def test_slots_promised_for_later_leave_some_for_a_need() -> None:
    """Liveness: a need that comes before the promised time finds slots that are not promised."""
    ledger = ledger_of(4, held=[(0, 0), (0, 1), (1, 0), (1, 1)])
    wanted = {(0, 0): 255, (0, 1): 255, (1, 0): 255, (1, 1): 255}
    later = {(layer, expert): 255 for layer in (2, 3) for expert in range(4)}
    promised = kinds(ledger.handle(plan_of(5, {**wanted, **later})), Recall)
    assert sum(len(recall.slots) for recall in promised) == 4 - TOP_K
    (recall,) = kinds(ledger.handle(Miss(4, 3, [6, 7])), Recall)
    assert (len(recall.slots), recall.step) == (2, -1)


def test_with_a_slot_for_every_expert_all_are_brought_in_order() -> None:
    """No plan is needed, and nothing is ever recalled."""
    ledger = LooseLedger(LAYERS * EXPERTS, LAYERS, EXPERTS, TOP_K, fills_in_flight=1)
    order, actions = [], ledger.handle(ResidentTable({}))
    while starts := kinds(actions, StartFill):
        assert not kinds(actions, Recall)
        order += experts_of(actions)
        actions = ledger.handle(FillDone(starts[0].slot))
    assert order == [(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)]


def test_a_new_compute_hears_again_of_everything_that_is_filled() -> None:
    """After a death contents stay, recalls and needs are void, and what was filling goes on."""
    ledger = ledger_of(3, held=[(3, 0), (3, 1)], fills_in_flight=1)
    (start, recall) = ledger.handle(Miss(0, 0, [5, 6, 7]))
    assert isinstance(recall, Recall)
    assert ledger.handle(ComputeJoined()) == [Filled(0, 3, 0), Filled(1, 3, 1)]
    assert ledger.handle(ResidentTable({})) == []
    assert ledger.handle(FillDone(start.slot)) == [Filled(start.slot, 0, 5, Cause("miss", 0, 0))]
    assert kinds(ledger.handle(Miss(1, 0, [1])), Recall), "slots asked of the dead compute must be asked for again"


def test_a_failed_transfer_is_tried_again_only_if_it_is_needed() -> None:
    """A broken file must not be read in a loop on the strength of a prediction."""
    ledger = ledger_of(8)
    (start,) = ledger.handle(plan_of(0, {(1, 4): 255}))
    assert ledger.handle(FillDone(start.slot, ok=False)) == []
    (reissue_copies,) = ledger.handle(Miss(0, 1, [4]))
    assert reissue_copies.urgent
    assert experts_of(ledger.handle(FillDone(reissue_copies.slot, ok=False))) == [(1, 4)]
    assert ledger.statistics().failed == 2


NONSENSE = [
    Released([99], 0, 0),
    Released([-1], 0, 0),
    Released([2], 0, 0),
    Released([], 0, 99),
    Released([], 1 << 62, 0),
    Miss(0, 99, [1]),
    Miss(0, 0, [99, -1]),
    FillDone(99),
    FillDone(0),
    StepPrediction(0, b""),
    StepPrediction(-1, bytes(LAYERS * EXPERTS)),
    StepPrediction(1 << 62, bytes(LAYERS * EXPERTS)),
    StepRouting(
        step=0, token_ids=[1], rows=[], positions=[], top_k=1, experts=b"\xff\xff", hits=0, misses=0, stall_ns=0
    ),
    StepRouting(step=0, token_ids=[1], rows=[], positions=[], top_k=-1, experts=b"", hits=0, misses=0, stall_ns=0),
    StepRouting(
        step=0, token_ids=[1], rows=[], positions=[], top_k=1, experts=b"\xfe" * 8, hits=0, misses=0, stall_ns=0
    ),
]


@pytest.mark.parametrize("message", NONSENSE, ids=lambda message: repr(message)[:60])
def test_nonsense_is_counted_and_changes_nothing(message: Any) -> None:
    ledger = ledger_of(3, held=[(3, 0), (3, 1)])
    assert ledger.handle(message) == []
    facts = ledger.statistics()
    assert (facts.free, facts.held, facts.invalid > 0) == (1, 2, True)
    assert experts_of(ledger.handle(Miss(1, 0, [5]))) == [(0, 5)]


def test_late_predictions_and_hints_are_no_nonsense() -> None:
    """A predictor that was not given a core in time is no fault, and no reason to load anything."""
    ledger = ledger_of(3, held=[(3, 0), (3, 1)])
    ledger.handle(Miss(2, 1, []))
    late = [StepPrediction(1, bytes([255]) * (LAYERS * EXPERTS)), Hint(2, 1, bytes([255]) * EXPERTS)]
    assert [ledger.handle(message) for message in late] == [[], []]
    facts = ledger.statistics()
    assert (facts.late, facts.invalid, facts.filling) == (2, 0, 0)


def test_a_table_of_nonsense_keeps_every_slot_accounted_for() -> None:
    """What compute says it holds is never written before it is returned, even if the entry is useless."""
    ledger = LooseLedger(4, LAYERS, EXPERTS, TOP_K)
    actions = ledger.handle(ResidentTable({0: (0, 1), 1: (0, 1), 2: (99, 0), 77: (0, 2)}))
    assert actions == [Recall([1, 2], cause=Cause("policy"))]
    assert experts_of(ledger.handle(Released([1, 2], -1, -1))) == []
    facts = ledger.statistics()
    assert (facts.free, facts.held, facts.invalid) == (3, 1, 3)


def test_with_whole_layers_a_miss_loads_every_expert_of_its_layer_in_order() -> None:
    """SE-MoE's unit is the layer, whatever was chosen of it."""
    ledger = LooseLedger(12, LAYERS, EXPERTS, TOP_K, fills_in_flight=9, whole_layers=True)
    ledger.handle(ResidentTable({0: (1, 2)}))
    assert ledger.handle(Miss(0, 1, [])) == []
    assert experts_of(ledger.handle(Miss(0, 1, [6, 4]))) == [(1, expert) for expert in (0, 1, 3, 4, 5, 6, 7)]
