"""Slots that refer to the host store (link = dma) show an expert when the link has carried it, and nothing before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from expertflow.errors import EngineError
from expertflow.ipc.shared.slot_references import REFERENCE_BYTES, SlotReferences
from expertflow.tests.loader.arenas import all_experts, fill
from expertflow.tests.loader.layouts import make_survey, write_random
from expertflow.tests.loader.test_link import Clock
from expertflow.workers.checkpoint.layout import filled_bytes
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.experts.slots import SlotViews, StoreViews
from expertflow.workers.loader.transfer.files import CHUNK_BYTES, BounceBuffer
from expertflow.workers.loader.transfer.link import EmulatedLink
from expertflow.workers.loader.transfer.store_references import StoreReferences

EXPERTS, SLOTS = 4, 3
RATE = 10**9
BOUNCE = BounceBuffer(1)


@pytest.fixture
def survey(tmp_path: Path) -> Survey:
    """Experts of three chunks, the last of which is shorter."""
    elements = CHUNK_BYTES + 5000
    (file,) = write_random(tmp_path, 2 * elements + 8 * EXPERTS)
    return make_survey([file], [[elements]], [[(0, 8 * expert)] for expert in range(EXPERTS)], 1)


@pytest.fixture
def store(survey: Survey) -> np.ndarray:
    memory = np.zeros(EXPERTS * survey.stride_bytes, dtype=np.uint8)
    fill(survey, {key: (0, key) for key in range(EXPERTS)}, memory)
    return memory


def empty_slots(slots: int = SLOTS) -> np.ndarray:
    return np.zeros(slots * REFERENCE_BYTES, dtype=np.uint8)


def test_a_slot_shows_its_expert_when_the_link_has_carried_it_and_not_before(survey: Survey) -> None:
    clock, memory = Clock(), empty_slots()
    source = StoreReferences(survey, EmulatedLink(RATE, clock, clock.sleep))
    started_ns = clock.now_ns
    chunks = source.chunks(memory, 1 * survey.stride_bytes, 0, 2)
    assert len(chunks) == 3
    for chunk in chunks:
        assert SlotReferences(memory).key(1) is None
        chunk(BOUNCE)
    assert SlotReferences(memory).key(1) == 2
    assert clock.now_ns - started_ns == pytest.approx(filled_bytes(survey, 0, 2) * 1e9 / RATE, abs=len(chunks))


def test_chunks_may_arrive_in_any_order(survey: Survey) -> None:
    clock, memory = Clock(), empty_slots()
    chunks = StoreReferences(survey, EmulatedLink(RATE, clock, clock.sleep)).chunks(memory, 0, 0, 3)
    for chunk in reversed(chunks[1:]):
        chunk(BOUNCE)
    assert SlotReferences(memory).key(0) is None
    chunks[0](BOUNCE)
    assert SlotReferences(memory).key(0) == 3


def test_a_slot_that_is_ordered_anew_shows_nothing(survey: Survey) -> None:
    """Not its last expert either: a copy would have overwritten parts of it."""
    clock, memory = Clock(), empty_slots()
    SlotReferences(memory).set(2, 1)
    StoreReferences(survey, EmulatedLink(RATE, clock, clock.sleep)).chunks(memory, 2 * survey.stride_bytes, 0, 3)
    assert SlotReferences(memory).key(2) is None


def test_no_byte_is_copied(survey: Survey, store: np.ndarray) -> None:
    memory = empty_slots(EXPERTS)
    views = StoreViews(memory, store, survey)
    link = EmulatedLink(10**12, Clock(), lambda seconds: None)
    fill(survey, all_experts(survey), memory, StoreReferences(survey, link))
    for slot, (layer, expert) in all_experts(survey).items():
        shown, stored = views.weights(slot, layer, expert), SlotViews(store, survey).weights(expert, layer, expert)
        assert shown["tensor0"].data_ptr() == stored["tensor0"].data_ptr()
        assert torch.equal(shown["tensor0"].view(torch.int16), stored["tensor0"].view(torch.int16))


def test_an_empty_slot_cannot_be_computed(survey: Survey, store: np.ndarray) -> None:
    with pytest.raises(EngineError, match="no transfer into it has ended"):
        StoreViews(empty_slots(), store, survey).weights(0, 0, 1)


def test_a_slot_shows_what_lies_in_it_and_not_what_it_is_asked_for(survey: Survey, store: np.ndarray) -> None:
    """A stale slot must give wrong bits, as bytes would, or no test could see it."""
    memory = empty_slots()
    SlotReferences(memory).set(0, 2)
    shown = StoreViews(memory, store, survey).weights(0, 0, 1)["tensor0"]
    assert torch.equal(shown.view(torch.int16), SlotViews(store, survey).weights(2, 0, 2)["tensor0"].view(torch.int16))


@pytest.mark.parametrize(("slots", "wrong", "stacks"), [(EXPERTS, -1, True), (EXPERTS, 2, False), (SLOTS, -1, False)])
def test_a_layer_is_stacked_only_if_each_slot_shows_its_own_expert(
    survey: Survey, store: np.ndarray, slots: int, wrong: int, stacks: bool
) -> None:
    memory = empty_slots(slots)
    for slot in range(slots):
        SlotReferences(memory).set(slot, 0 if slot == wrong else slot)
    assert (StoreViews(memory, store, survey).stack(0) is not None) == stacks
