"""Compute's core alone: what runs, what is asked for, what is given back and when."""

from __future__ import annotations

import pytest
from expertflow.ipc.messages import Filled, Miss, Recall, Released, ResidentTable
from expertflow.workers.compute.experts.holdings import (
    Computed,
    Holdings,
    LayerEnded,
    LayerEntered,
    LayerRoutesKnown,
    LayerStarted,
    LoaderJoined,
    Run,
)

LAYERS, EXPERTS = 3, 6


def holdings_of(*held: tuple[int, int], slots: int = 8) -> Holdings:
    """Holdings with these experts in slots 0, 1, …"""
    holdings = Holdings(slots, LAYERS, EXPERTS)
    for slot, (layer, expert) in enumerate(held):
        assert holdings.handle(Filled(slot, layer, expert)) == []
    return holdings


def test_a_layer_of_hits_runs_without_a_message() -> None:
    """R2: a hit is a lookup."""
    holdings = holdings_of((1, 4), (1, 2))
    assert holdings.handle(LayerStarted(0, 1, [2, 4])) == [Run([(2, 1), (4, 0)])]
    assert holdings.handle(Computed([2, 4])) == []
    assert holdings.layer_done
    assert holdings.handle(LayerEnded()) == []
    assert (holdings.hits, holdings.misses) == (2, 0)


def test_the_need_goes_out_before_anything_runs() -> None:
    """The transfer overlaps with the kernels of what is there (R4); the policy hears of what was found."""
    holdings = holdings_of((1, 4))
    assert holdings.handle(LayerStarted(7, 1, [2, 4, 5])) == [Miss(7, 1, [2, 5], [10]), Run([(4, 0)])]
    holdings.handle(Computed([4]))
    assert not holdings.layer_done
    assert holdings.missing == {2, 5}


def test_an_arrival_runs_at_once() -> None:
    holdings = holdings_of()
    holdings.handle(LayerStarted(0, 0, [3]))
    assert holdings.handle(Filled(5, 0, 3)) == [Run([(3, 5)])]
    assert not holdings.layer_done
    holdings.handle(Computed([3]))
    assert holdings.layer_done


def test_an_arrival_for_another_layer_does_not_run() -> None:
    holdings = holdings_of()
    holdings.handle(LayerStarted(0, 0, [3]))
    assert holdings.handle(Filled(5, 1, 3)) == []
    assert not holdings.layer_done


def test_a_layer_that_is_entered_runs_all_experts_and_counts_those_it_chose() -> None:
    """A device works the routes out for itself; the policy hears of them with the next need."""
    holdings = holdings_of(*((1, expert) for expert in range(EXPERTS)))
    assert holdings.handle(Recall([2], 3, 1)) == []
    assert holdings.handle(LayerEntered(3, 1)) == [Run([(expert, expert) for expert in range(EXPERTS)])]
    assert holdings.handle(Recall([4])) == []
    assert holdings.handle(LayerEnded()) == [Released([2, 4], 3, 1)]
    holdings.handle(LayerRoutesKnown(1, [0, 5]))
    assert (holdings.hits, holdings.misses) == (2, 0)
    assert holdings.handle(LayerStarted(3, 2, [1])) == [Miss(3, 2, [1], [6, 11])]


def test_a_layer_in_which_an_expert_is_missing_is_not_entered() -> None:
    """And what was recalled for it stays until it really begins."""
    holdings = holdings_of(*((1, expert) for expert in range(1, EXPERTS)))
    holdings.handle(Recall([0], 3, 1))
    assert not holdings.is_resident(1)
    assert holdings.handle(LayerEntered(3, 1)) == []
    assert holdings.handle(LayerStarted(3, 1, [1])) == [Run([(1, 0)])]
    assert holdings.handle(Computed([1])) == [Released([0], 3, 1)]


def test_a_recall_now_is_answered_at_once_unless_a_kernel_reads_the_slot() -> None:
    """I3: a slot that is read stays until it is computed; the others go in one message."""
    holdings = holdings_of((0, 0), (0, 1), (1, 0))
    holdings.handle(LayerStarted(2, 0, [0]))
    assert holdings.handle(Recall([0, 1, 2])) == [Released([1, 2], 2, 0)]
    assert holdings.handle(Computed([0])) == [Released([0], 2, 0)]
    assert holdings.table() == {}


def test_a_recall_for_later_is_answered_there_and_not_before() -> None:
    """R3: slots roll forward; before that they are hits."""
    holdings = holdings_of((0, 0), (1, 0))
    assert holdings.handle(Recall([0, 1], 4, 1)) == []
    assert holdings.handle(LayerStarted(4, 0, [0])) == [Run([(0, 0)])]
    assert holdings.handle(Computed([0])) == []
    assert holdings.handle(LayerEnded()) == []
    assert holdings.handle(LayerStarted(4, 1, [0])) == [Released([0], 4, 1), Run([(0, 1)])]
    assert holdings.handle(Computed([0])) == [Released([1], 4, 1)]


def test_a_recall_for_later_is_answered_when_its_place_was_skipped() -> None:
    """A cancelled step must not keep slots for ever."""
    holdings = holdings_of((0, 0))
    holdings.handle(Recall([0], 4, 2))
    assert holdings.handle(LayerStarted(5, 0, [1])) == [Miss(5, 0, [1]), Released([0], 5, 0)]


def test_a_recall_now_overtakes_one_for_later() -> None:
    holdings = holdings_of((0, 0))
    holdings.handle(Recall([0], 4, 2))
    assert holdings.handle(Recall([0])) == [Released([0], -1, -1)]


def test_a_recall_that_crossed_its_answer_is_ignored() -> None:
    holdings = holdings_of()
    assert holdings.handle(Recall([0, 99, -3])) == []


def test_an_abandoned_layer_unpins_everything() -> None:
    """A step that failed must not hold slots back."""
    holdings = holdings_of((0, 0))
    holdings.handle(LayerStarted(0, 0, [0, 1]))
    holdings.handle(Recall([0]))
    assert holdings.handle(LayerEnded()) == [Released([0], 0, 0)]
    assert holdings.layer_done
    assert holdings.handle(Filled(1, 0, 1)) == []


def test_a_new_loader_hears_what_is_held_and_still_missing() -> None:
    """R9; and what the old one asked for is void."""
    holdings = holdings_of((0, 0), (2, 5))
    holdings.handle(Recall([1], 9, 0))
    holdings.handle(LayerStarted(3, 0, [0, 4, 1]))
    assert holdings.handle(LoaderJoined()) == [ResidentTable({0: (0, 0), 1: (2, 5)}, Miss(3, 0, [1, 4]))]
    holdings.handle(LayerEnded())
    assert holdings.handle(LoaderJoined()) == [ResidentTable({0: (0, 0), 1: (2, 5)}, None)]
    assert holdings.handle(LayerStarted(9, 0, [0])) == [Run([(0, 0)])]


def test_the_same_news_twice_changes_nothing() -> None:
    holdings = holdings_of((0, 0))
    assert holdings.handle(Filled(0, 0, 0)) == []
    assert holdings.table() == {0: (0, 0)}


def test_a_second_slot_of_an_expert_goes_back() -> None:
    """Otherwise nobody would own it."""
    holdings = holdings_of((0, 0))
    assert holdings.handle(Filled(1, 0, 0)) == [Released([1], -1, -1)]
    assert holdings.table() == {0: (0, 0)}


@pytest.mark.parametrize("place", [(9, 0), (0, 9), (-1, 0), (0, -1)])
def test_an_expert_that_does_not_exist_goes_back(place: tuple[int, int]) -> None:
    holdings = holdings_of((0, 0))
    assert holdings.handle(Filled(1, *place)) == [Released([1], -1, -1)]
    assert holdings.handle(Filled(99, *place)) == []
    assert holdings.statistics().invalid == 2


def test_an_overwritten_slot_is_never_used_for_what_was_in_it() -> None:
    """A stale slot would give wrong values; whatever the loader wrote is what the slot holds."""
    holdings = holdings_of((0, 0), (0, 1))
    assert holdings.handle(Filled(0, 1, 1)) == []
    assert holdings.handle(LayerStarted(0, 0, [0])) == [Miss(0, 0, [0])]
    assert holdings.handle(Filled(0, 0, 1)) == [Released([0], 0, 0)]
    assert holdings.table() == {1: (0, 1)}
