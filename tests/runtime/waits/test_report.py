"""Reports of waits: the longest first, each with what led to it, and their words."""

from __future__ import annotations

import pytest
from expertflow.errors import UsageError
from expertflow.ipc.messages import Span
from expertflow.runtime.waits.history import read_history
from expertflow.runtime.waits.report import LinkUse, report_waits
from expertflow.runtime.waits.text import report_lines
from expertflow.tests.runtime.waits.made import MS, evict, history, load, miss, stall, step, unused
from expertflow.workers.loader.explanations import Reason

CHAIN = history(
    step(1, 0, 40),
    step(2, 40, 100),
    stall(10, 12, "6", layer=1),
    miss(10, 6, Reason.NEVER, layer=1),
    evict(44, 5, 0, 3, "prediction", for_step=2, for_layer=1),
    load(45, 52, 1, 7, "prediction", step=2, slot=5, queued_us=500),
    unused(95, 1, 7, step=2),
    stall(50, 53, "3,4", step=2, wanted=4),
    stall(53, 60, "3", step=2, wanted=4),
    miss(50, 3, Reason.LOW, step=2),
    miss(50, 4, Reason.LATE, step=2),
    load(52, 53, 0, 4, "hint", step=2, slot=6, queued_us=1000),
    load(53, 59, 0, 3, "miss", step=2, slot=5, queued_us=2000),
)


def test_waits_of_a_layer_are_one_and_the_longest_comes_first() -> None:
    report = report_waits(CHAIN)
    assert (report.steps, report.steps_ns, report.waits, report.waited_ns) == (2, 100 * MS, 2, 12 * MS)
    assert [(wait.step, wait.layer, wait.waited_ns) for wait in report.longest] == [(2, 0, 10 * MS), (1, 1, 2 * MS)]
    assert list(report.blames.items()) == [
        ("evicted for a wrong prediction", 7.5 * MS),
        ("wrong prediction on the link", 2 * MS),
        ("never predicted", 2 * MS),
        ("predicted too late", 0.5 * MS),
    ]
    assert sum(report.blames.values()) == report.waited_ns
    assert [wait.step for wait in report_waits(CHAIN, longest=1).longest] == [2]


def test_a_chain_leads_from_the_eviction_to_the_arrival() -> None:
    [wait, _] = report_waits(CHAIN).longest
    evicted, late = wait.experts
    assert (evicted.expert, evicted.reason, evicted.chance_percent) == (3, "predicted too low", 20)
    assert evicted.evicted is not None and evicted.filled is not None
    assert (evicted.evicted.before_wait_ns, evicted.evicted.cause) == (6 * MS, "prediction")
    assert (evicted.evicted.for_step, evicted.evicted.for_layer) == (2, 1)
    assert (evicted.evicted.for_expert, evicted.evicted.for_unused) == ((1, 7), True)
    assert (evicted.filled.ordered_ns, evicted.filled.queued_ns, evicted.filled.transfer_ns) == (MS, 2 * MS, 6 * MS)
    assert late.evicted is None and late.filled is not None and late.filled.cause == "hint"
    assert wait.link == [LinkUse(cause="prediction", unused=True, fills=1, time_ns=2 * MS)]


def test_it_reads_as_a_story() -> None:
    told = list(report_lines(report_waits(CHAIN)))
    assert told[0] == "2 steps in 100 ms; waited 2 times for experts, 12 ms in all (12%)"
    assert told[2].startswith("  7.5 ms  62%  evicted for a wrong prediction: an expert was evicted")
    start = told.index("1. 10 ms at step 2, layer 0: 2 of 4 experts missing")
    assert told[start + 1 : start + 8] == [
        "   expert 3: predicted too low (probability 20 %, needed 40 %)",
        "      evicted 6 ms before the wait for a prediction of step 2, layer 1: expert 7 of layer 1 took its slot, "
        "which its step did not use",
        "      ordered 1 ms into the wait for a miss, 2 ms in the queue, 6 ms on the link",
        "   expert 4: predicted too late (probability 20 %, needed 40 %)",
        "      ordered 1 ms into the wait for a hint, 1 ms in the queue, 1 ms on the link",
        "   on the link meanwhile: 1 unused fill for a prediction (2 ms)",
        "   blamed: evicted for a wrong prediction 7.5 ms, wrong prediction on the link 2 ms, "
        "predicted too late 500 µs",
    ]


def test_many_experts_are_counted_not_listed() -> None:
    what = history(
        step(1, 0, 9), stall(1, 2, "0,1,2,3,4,5", wanted=12), *(miss(1, each, Reason.NO_ROOM) for each in range(6))
    )
    told = list(report_lines(report_waits(what)))
    assert "   2 more: 2 no room" in told and sum(line.startswith("   expert") for line in told) == 4
    assert "1. 1 ms at step 1, layer 0: 6 of 12 experts missing, 8 slots" in told


def test_an_expert_that_died_with_its_compute_or_is_of_a_later_scheduler() -> None:
    number = (3 << 32) + 5
    what = history(
        step(number, 0, 9),
        stall(1, 2, "0", step=number),
        miss(1, 0, Reason.NEVER, step=number),
        evict(0.5, 1, 0, 0, "", for_step=-1, for_layer=-1),
    )
    told = list(report_lines(report_waits(what)))
    assert "1. 1 ms at step 5 of scheduler 3, layer 0: 1 of 2 experts missing" in told
    assert "      evicted 500 µs before the wait, with its compute" in told


def test_without_a_wait_there_is_nothing_to_explain() -> None:
    assert list(report_lines(report_waits(history(step(1, 0, 9))))) == ["1 steps in 9 ms; none waited for an expert"]


def test_a_timeline_without_causes_is_refused() -> None:
    """One of an earlier version: its stalls say nothing of what they wait for."""
    with pytest.raises(UsageError, match="does not say why"):
        read_history([step(1, 0, 9), ("compute", Span("stall", 1, 2, 1, {}))])
