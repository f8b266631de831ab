"""Causes on every order of a ledger, and its notes of why experts were missing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import pytest
from expertflow.ipc.messages import (
    NO_CAUSE,
    Cause,
    Copy,
    Filled,
    Hint,
    Miss,
    Recall,
    Released,
    ResidentTable,
    StepPrediction,
)
from expertflow.ipc.messages.to_compute import COMPUTE_FROM_LOADER
from expertflow.tests.loader.test_ledger import EXPERTS, LAYERS, TOP_K, LooseLedger, kinds, plan_of, used_of
from expertflow.workers.loader.drawing import Drawing
from expertflow.workers.loader.events import ComputeJoined, FillDone, StartFill
from expertflow.workers.loader.explanations import Evicted, MissExplained, PrefetchUnused, Reason
from expertflow.workers.loader.host_tier import HostTier, ReadInto
from expertflow.workers.loader.transfer.transfers import Transfer


def explaining(slots: int, held: Iterable[tuple[int, int]] = (), fills_in_flight: int = 2) -> LooseLedger:
    ledger = LooseLedger(slots, LAYERS, EXPERTS, TOP_K, fills_in_flight=fills_in_flight, explain=True)
    ledger.handle(ResidentTable(dict(enumerate(held))))
    return ledger


def reasons(ledger: LooseLedger) -> list[tuple[int, Reason]]:
    return [(note.expert, note.reason) for note in ledger.explanations() if isinstance(note, MissExplained)]


def hint_of(step: int, layer: int, experts: list[int]) -> Hint:
    return Hint(step, layer, bytes(255 * (expert in experts) for expert in range(EXPERTS)))


# Causes


def test_fills_and_recalls_carry_the_cause_of_what_they_are_for() -> None:
    ledger = explaining(3, held=[(3, 0), (3, 1)], fills_in_flight=9)
    (planned,) = kinds(ledger.handle(plan_of(0, {(1, 4): 255})), StartFill)
    assert planned.cause == Cause("prediction", 0, 1)
    assert ledger.handle(FillDone(planned.slot))[0] == Filled(planned.slot, 1, 4, Cause("prediction", 0, 1))
    (recall,) = kinds(ledger.handle(Miss(0, 0, [5])), Recall)
    assert recall.cause == Cause("miss", 0, 0)
    (needed,) = kinds(ledger.handle(Released(recall.slots, 0, 0)), StartFill)
    assert needed.cause == Cause("miss", 0, 0)


def test_a_hint_takes_over_what_a_plan_named_too() -> None:
    """What made the loader act is the better informed of the two; a hint that is silent about an expert did not."""
    ledger = explaining(16, fills_in_flight=9)
    ledger.handle(plan_of(0, {(2, 1): 90, (2, 2): 90}))
    started = kinds(ledger.handle(hint_of(0, 2, [1])), StartFill)
    assert [(each.expert, each.cause) for each in started] == [(1, Cause("hint", 0, 2))]


def test_a_slot_that_is_asked_for_ahead_says_for_whom() -> None:
    (recall,) = explaining(4, held=[(1, 0), (1, 1), (3, 0), (3, 1)]).handle(
        plan_of(0, {(1, 0): 255, (1, 1): 255, (3, 0): 255, (3, 1): 255, (2, 5): 255})
    )
    assert recall.cause == Cause("prediction", 0, 2)


def test_with_a_slot_for_every_expert_the_policy_fills() -> None:
    (first, *_) = LooseLedger(LAYERS * EXPERTS, LAYERS, EXPERTS, TOP_K).handle(ResidentTable({}))
    assert first.cause == Cause("policy")


def test_a_copy_carries_the_cause_of_its_fetch() -> None:
    """Through the host store too: read from disk, then copied; and ordered again for a new compute."""
    tier, cause = HostTier(1, EXPERTS, full=False), Cause("hint", 3, 1)
    [read] = tier.fetch(0, 1, 2, False, cause)
    assert isinstance(read, ReadInto) and read.cause == cause
    [copy] = tier.on_read(read.place)
    [reissue_copies] = tier.reissue_copies()
    assert isinstance(copy, Copy) and isinstance(reissue_copies, Copy) and copy.cause == reissue_copies.cause == cause


def test_messages_of_before_causes_are_still_read() -> None:
    """Recordings and logs outlive a version."""
    old = {"type": "Filled", "slot": 1, "layer": 2, "expert": 3}
    assert COMPUTE_FROM_LOADER.decode(msgspec.msgpack.encode(old)) == Filled(1, 2, 3, NO_CAUSE)
    old = {"type": "Recall", "slots": [1], "step": 2, "layer": 3}
    assert COMPUTE_FROM_LOADER.decode(msgspec.msgpack.encode(old)) == Recall([1], 2, 3, NO_CAUSE)
    new = Recall([1], 2, 3, Cause("hint", 2, 4))
    assert COMPUTE_FROM_LOADER.decode(msgspec.msgpack.encode(new)) == new


# Why an expert was missing


def test_what_nobody_named_was_never_predicted() -> None:
    ledger = explaining(8)
    ledger.handle(Miss(0, 0, [5, 6]))
    assert reasons(ledger) == [(5, Reason.NEVER), (6, Reason.NEVER)]
    ledger.handle(plan_of(1, {(2, 0): 255}))
    ledger.handle(Miss(1, 1, [3]))
    assert reasons(ledger) == [(3, Reason.NEVER)]


def test_what_was_named_as_unlikely_was_predicted_too_low() -> None:
    ledger = explaining(8)
    ledger.handle(plan_of(0, {(1, 3): 60}))
    ledger.handle(Miss(0, 1, [3]))
    [miss] = ledger.explanations()
    assert isinstance(miss, MissExplained) and miss.reason is Reason.LOW
    assert 0 < miss.chance < miss.wanted < 1 and miss.slots == 8


def test_what_is_on_its_way_was_predicted_too_late() -> None:
    ledger = explaining(8)
    ledger.handle(plan_of(0, {(1, 4): 255}))
    ledger.handle(Miss(0, 1, [4]))
    [miss] = ledger.explanations()
    assert isinstance(miss, MissExplained)
    assert (miss.reason, miss.cause) == (Reason.LATE, Cause("prediction", 0, 1))


@pytest.mark.parametrize("advice", [plan_of(0, {(1, 4): 255}), hint_of(0, 1, [4])], ids=["plan", "hint"])
def test_what_is_named_after_its_layer_began_was_predicted_too_late(advice: Any) -> None:
    """The miss is explained anew, once."""
    ledger = explaining(8)
    ledger.handle(Miss(0, 1, [4, 5]))
    ledger.handle(advice)
    ledger.handle(advice)
    assert reasons(ledger) == [(4, Reason.NEVER), (5, Reason.NEVER), (4, Reason.LATE)]


def test_a_wanted_expert_whose_slot_is_not_returned_yet_is_late() -> None:
    ledger = explaining(3, held=[(0, 0), (0, 1), (0, 2)])
    assert kinds(ledger.handle(plan_of(0, {(1, 4): 255})), Recall)
    ledger.handle(Miss(0, 1, [4]))
    assert reasons(ledger) == [(4, Reason.LATE)]


def test_a_wanted_expert_without_a_slot_to_be_had_had_no_room() -> None:
    """All slots are wanted for the same layer."""
    ledger = explaining(4, held=[(2, 0), (2, 1), (2, 2), (2, 3)])
    ledger.handle(plan_of(0, {(2, expert): 255 for expert in range(5)}))
    ledger.handle(Miss(0, 2, [4]))
    assert reasons(ledger) == [(4, Reason.NO_ROOM)]


def test_a_wanted_expert_that_the_link_had_not_come_to_was_dropped() -> None:
    ledger = explaining(8, fills_in_flight=1)
    ledger.handle(plan_of(0, {(1, 3): 255, (1, 4): 255}))
    ledger.handle(Miss(0, 1, [4]))
    assert reasons(ledger) == [(4, Reason.DROPPED)]


def test_a_broken_file_is_the_reason_for_the_next_miss() -> None:
    ledger = explaining(8)
    (start,) = ledger.handle(plan_of(0, {(1, 4): 255}))
    ledger.handle(FillDone(start.slot, ok=False))
    ledger.handle(Miss(0, 1, [4]))
    assert reasons(ledger) == [(4, Reason.FAILED)]


# What went for what


def test_evictions_say_for_what_and_which_prefetch_was_for_nothing() -> None:
    """A wrong prediction takes the slot of (3, 1); its step does not use it; then it goes for a miss."""
    ledger = explaining(3, held=[(3, 0), (3, 1), (2, 0)])
    for step in range(3):
        ledger.handle(used_of(step, [0, 2]))
    (recall,) = kinds(ledger.handle(plan_of(3, {(1, 7): 255})), Recall)
    given = recall.slots[0]
    (start, *_) = kinds(ledger.handle(Released([given], 3, 0)), StartFill)
    ledger.handle(FillDone(start.slot))
    ledger.handle(used_of(3, [0, 2]))
    notes, (layer, expert) = ledger.explanations(), [(3, 0), (3, 1), (2, 0)][given]
    assert [note for note in notes if isinstance(note, Evicted)] == [
        Evicted(given, layer, expert, Cause("prediction", 3, 1))
    ]
    assert [note for note in notes if isinstance(note, PrefetchUnused)] == [PrefetchUnused(3, 1, 7)]


def test_a_prefetch_that_its_step_used_is_not_called_unused() -> None:
    ledger = explaining(8)
    (start,) = ledger.handle(plan_of(0, {(1, 2): 255}))
    ledger.handle(FillDone(start.slot))
    ledger.handle(used_of(0, [2, 3]))
    assert ledger.explanations() == []


def test_what_dies_with_its_compute_is_evicted_for_nothing() -> None:
    ledger = LooseLedger(4, LAYERS, EXPERTS, TOP_K, volatile=True, explain=True)
    ledger.handle(ResidentTable({0: (1, 1)}))
    ledger.handle(Miss(0, 0, [2, 3, 4, 5]))  # asks for slot 0, which the dead compute never gives back
    ledger.handle(ComputeJoined())
    assert ledger.explanations()[-1] == Evicted(0, 1, 1, NO_CAUSE)


def test_explaining_changes_no_decision() -> None:
    """The same orders, in the same order, with notes and without; without, none are kept."""
    random, heard = np.random.default_rng(5), []
    for step in range(12):
        heard.append(StepPrediction(step, random.integers(0, 256, LAYERS * EXPERTS, np.uint8).tobytes()))
        for layer in range(LAYERS):
            heard.append(Miss(step, layer, random.choice(EXPERTS, 3, replace=False).tolist()))
            heard += [FillDone(slot) for slot in range(6)] + [Released([slot], step, layer) for slot in range(6)]
        heard.append(used_of(step, random.choice(EXPERTS, 2, replace=False).tolist()))
    ledgers = [LooseLedger(6, LAYERS, EXPERTS, TOP_K, explain=explain) for explain in (False, True)]
    orders = [
        [action for event in [ResidentTable({}), *heard] for action in ledger.handle(event)] for ledger in ledgers
    ]
    assert orders[0] == orders[1] and len(orders[0]) > 50
    assert ledgers[0].explanations() == [] and len(ledgers[1].explanations()) > 50


# On the timeline


class Spans:
    """Collects what is drawn; every look at the clock is 10 µs later."""

    def __init__(self) -> None:
        self.drawn: list[tuple[str, int, int, int, dict[str, int | str]]] = []
        self.now_ns = 0

    def add(self, name: str, start_ns: int, end_ns: int, lane: int, detail: dict[str, int | str]) -> None:
        self.drawn.append((name, start_ns, end_ns, lane, detail))

    def clock_ns(self) -> int:
        self.now_ns += 10_000
        return self.now_ns


def test_transfers_and_copies_are_drawn_with_their_causes() -> None:
    """Side by side in lanes of their own; copies that a dead compute was told are never drawn."""
    spans = Spans()
    drawing = Drawing(spans.add, spans.clock_ns, "slot")
    for slot in (1, 2):
        drawing.draw_transfer(Transfer(slot, 0, 5, 0, Cause("hint", 7, 0), 1000, 41_000 + slot, 90_000))
    drawing.on_copy_sent(Copy(1, 4, 2, 3, 0, cause=Cause("miss", 7, 2)))
    drawing.on_copies_done([1, 99])
    drawing.on_copy_sent(Copy(2, 4, 2, 3, 0))
    drawing.on_compute_joined()
    drawing.on_copies_done([2])
    load = {"layer": 0, "expert": 5, "cause": "hint", "step": 7, "queued_us": 40}
    assert spans.drawn == [
        ("load", 41_001, 90_000, 0, {**load, "slot": 1}),
        ("load", 41_002, 90_000, 1, {**load, "slot": 2}),
        ("copy", 10_000, 20_000, 64, {"layer": 2, "expert": 3, "cause": "miss", "step": 7, "slot": 4}),
    ]


def test_notes_are_drawn_as_moments() -> None:
    spans = Spans()
    miss = MissExplained(7, 1, 2, Reason.LOW, 0.204, 0.41, NO_CAUSE, 9)
    notes = [miss, Evicted(3, 1, 2, Cause("hint", 8, 0)), PrefetchUnused(7, 1, 6)]
    Drawing(spans.add, spans.clock_ns, "slot").draw_notes(notes)
    assert [(name, start_ns == end_ns) for name, start_ns, end_ns, _, _ in spans.drawn] == [
        ("miss", True), ("evict", True), ("unused", True),
    ]  # fmt: skip
    details = [detail for *_, detail in spans.drawn]
    assert details[0]["reason"] == "predicted too low" and details[0]["chance_percent"] == 20
    assert (details[1]["cause"], details[1]["for_step"], details[1]["for_layer"]) == ("hint", 8, 0)
    assert details[2] == {"step": 7, "layer": 1, "expert": 6}
