"""What waits are blamed on, where it is known what was to blame."""

from __future__ import annotations

from typing import Any

import pytest
from expertflow.runtime.waits.blame import MEANINGS, Blame, Blames, blame_stalls
from expertflow.runtime.waits.history import History
from expertflow.tests.runtime.waits.made import MS, evict, history, load, miss, stall, step, unused
from expertflow.workers.loader.explanations import Reason


def blamed_ms(what: History) -> dict[str, Any]:
    """Of all stalls, without what is blamed for nothing."""
    sums: Blames = {}
    for each in blame_stalls(what):
        for name, time_ns in each.items():
            sums[str(name)] = sums.get(str(name), 0.0) + time_ns / MS
    return {name: pytest.approx(time_ms) for name, time_ms in sums.items() if time_ms}


def test_a_wait_is_divided_among_the_experts_that_are_missing() -> None:
    """Each is blamed on its own reason, for as long as it is missing."""
    what = history(
        step(1, 0, 100),
        stall(10, 14, "3,5"),
        stall(14, 20, "5"),
        miss(10, 3, Reason.NEVER),
        miss(10, 5, Reason.LOW),
    )
    assert blamed_ms(what) == {"never predicted": 2, "predicted too low": 8}


def test_the_last_word_on_a_miss_counts() -> None:
    """A prediction that came after its layer began makes of "never" a "too late"."""
    what = history(step(1, 0, 100), stall(10, 14, "3"), miss(10, 3, Reason.NEVER), miss(11, 3, Reason.LATE))
    assert blamed_ms(what) == {"predicted too late": 4}


def test_prefetches_on_the_link_are_blamed_for_their_share() -> None:
    """Alone: for all of the time; beside a missing expert: for half. Wrong ones and right ones are told apart."""
    what = history(
        step(1, 0, 100),
        stall(10, 20, "3"),
        miss(10, 3, Reason.NEVER),
        load(8, 14, 1, 7, "prediction"),
        unused(50, 1, 7),
        load(14, 20, 0, 3, "miss"),
        load(16, 18, 2, 1, "hint"),
    )
    assert blamed_ms(what) == {
        "wrong prediction on the link": 4,
        "other prefetch on the link": 1,
        "never predicted": 5,
    }


def test_a_prefetch_that_is_waited_for_takes_nothing_from_itself() -> None:
    what = history(step(1, 0, 100), stall(10, 20, "3"), miss(10, 3, Reason.LATE), load(5, 20, 0, 3, "prediction"))
    assert blamed_ms(what) == {"predicted too late": 10}


@pytest.mark.parametrize(
    ("cause", "was_unused", "blamed"),
    [
        ("prediction", True, Blame.EVICTED_FOR_WRONG),
        ("hint", True, Blame.EVICTED_FOR_WRONG),
        ("prediction", False, Reason.LOW),
        ("miss", True, Reason.LOW),
    ],
)
def test_an_eviction_is_blamed_only_for_a_wrong_prediction(cause: str, was_unused: bool, blamed: str) -> None:
    """What took the slot next decides; an earlier eviction of the expert, and later fills of the slot, do not."""
    what = [
        step(1, 0, 100),
        stall(10, 20, "3"),
        miss(10, 3, Reason.LOW),
        evict(1, 4, 0, 3, "miss"),
        load(2, 3, 0, 3, "miss", slot=5),
        evict(5, 5, 0, 3, cause, for_layer=1),
        load(6, 7, 1, 7, cause if cause != "miss" else "prediction", slot=5),
        load(8, 9, 1, 8, "prediction", slot=5),
        unused(50, 1, 8 if not was_unused else 7),
    ]
    assert blamed_ms(history(*what)) == {str(blamed): 10}


def test_a_layer_that_wants_more_than_its_slots_is_blamed_on_capacity() -> None:
    """Whatever was predicted; and whatever else was evicted for what."""
    what = history(
        step(1, 0, 100),
        stall(10, 20, "3,4", wanted=9),
        miss(10, 3, Reason.NO_ROOM),
        miss(10, 4, Reason.NEVER),
        evict(5, 5, 0, 3, "prediction"),
        load(6, 7, 1, 7, "prediction", slot=5),
        unused(50, 1, 7),
    )
    assert blamed_ms(what) == {"capacity": 10}


def test_the_link_is_blamed_for_what_no_prediction_could_hide() -> None:
    """Step 1: 12 ms of transfers beside 10 ms of compute, so that 2 of 10 ms were bound to be waited. Step 2: none."""
    what = history(
        step(1, 0, 20),
        stall(5, 15, "3"),
        miss(5, 3, Reason.NEVER),
        load(3, 15, 0, 3, "miss"),
        step(2, 20, 60),
        stall(25, 35, "4", step=2),
        miss(25, 4, Reason.NEVER, step=2),
        load(25, 35, 0, 4, "miss", step=2),
    )
    assert blamed_ms(what) == {"link rate": 2, "never predicted": 18}


def test_unused_transfers_are_no_excuse_for_the_link() -> None:
    """It was slow because of them, not by itself: what is left of the wait is blamed on why the expert was missing."""
    what = history(
        step(1, 0, 12),
        stall(2, 12, "3"),
        miss(2, 3, Reason.NEVER),
        load(0, 10, 1, 7, "prediction"),
        unused(50, 1, 7),
        load(10, 12, 0, 3, "miss"),
    )
    assert blamed_ms(what) == {"wrong prediction on the link": 8, "never predicted": 2}


def test_transfers_side_by_side_count_once() -> None:
    """Two readers at a time: the link was taken for 10 ms, not for 20."""
    what = history(
        step(1, 0, 20),
        stall(5, 15, "3,4"),
        *(miss(5, expert, Reason.NEVER) for expert in (3, 4)),
        *(load(5, 15, 0, expert, "miss", slot=expert) for expert in (3, 4)),
    )
    assert blamed_ms(what) == {"never predicted": 10}


def test_what_the_loader_said_nothing_of_is_not_known() -> None:
    assert blamed_ms(history(step(1, 0, 100), stall(10, 14, "3"), stall(14, 15, ""))) == {"not known": 5}


def test_every_blame_has_a_meaning() -> None:
    assert set(MEANINGS) == {*Blame, *Reason}
