"""The last steps and their reasons, replayed from spans as stages publish them."""

from __future__ import annotations

from typing import Any

from expertflow.ipc.messages import StageSpans
from expertflow.runtime.waits.recent import MAX_SPANS, MAX_STEPS, RecentSpans
from expertflow.tests.runtime.waits.made import MS, load, miss, span, stall
from expertflow.workers.loader.explanations import Reason


def step(number: int, start_ms: float, end_ms: float, waited_ms: float = 0, rows: int = 1, name: str = "decode") -> Any:
    detail = {"step": number, "unit": 1, "rows": rows, "waited_us": round(1000 * waited_ms)}
    return span("compute", name, start_ms, end_ms, **detail)


def add(recent: RecentSpans, *spans: Any) -> None:
    """One answer with a message of each stage."""
    stages = [[each for name, each in spans if name == stage] for stage in ("compute", "loader")]
    first = recent.last_number + 1
    recent.add([StageSpans(first, "compute", stages[0]), StageSpans(first + 1, "loader", stages[1])])


def test_a_step_has_the_reasons_of_its_waits() -> None:
    """Also those that the loader publishes after compute has published the step."""
    recent = RecentSpans()
    add(recent, step(7, 0, 20, waited_ms=5, rows=3, name="prefill"), stall(4, 9, "2", step=7), step(8, 20, 30))
    assert recent.waits().steps == []
    add(recent, miss(4, 2, Reason.LATE, step=7), load(4, 9, 0, 2, "miss", step=7))
    waits = recent.waits()
    first, second = waits.steps
    assert (first.number, first.kind, first.rows, first.took_ns) == (7, "prefill", 3, 20 * MS)
    assert (first.waited_ns, first.unexplained_ns, first.waits) == (5 * MS, 0, {Reason.LATE: 5 * MS})
    assert (second.waited_ns, second.waits) == (0, {})
    assert waits.reasons == {Reason.LATE: 5 * MS} and "had not arrived" in waits.meanings[Reason.LATE]
    assert (waits.took_ns, waits.waited_ns, waits.unexplained_ns) == (30 * MS, 5 * MS, 0)
    assert waits.longest[0].startswith("1. 5 ms at step 7, layer 0")
    recent.add([])
    assert recent.waits() == waits, "a step is explained once"


def test_waits_of_a_long_step_come_seconds_before_its_end() -> None:
    """Stages publish in the middle of a step, every second."""
    recent = RecentSpans()
    add(recent, step(1, 0, 10))
    for second in range(4):
        at_ms = 1000 * second + 20
        add(recent, stall(at_ms, at_ms + 500, "2", step=2), miss(at_ms, 2, Reason.NEVER, step=2))
    add(recent, step(2, 10, 4010, waited_ms=2000))
    recent.add([])
    assert [each.waits for each in recent.waits().steps] == [{}, {Reason.NEVER: 2000 * MS}]
    recent.add([])
    assert len(recent._kept) == 1, "what was explained is forgotten, but for the last second of the loader"


def test_waits_whose_spans_were_left_out_are_not_hidden() -> None:
    """A step that began before the spans of its second did, or whose misses the loader did not note."""
    recent = RecentSpans()
    add(recent, step(1, 0, 20, waited_ms=8), stall(4, 6, "2"), stall(6, 7, "3"), miss(4, 2, Reason.NEVER))
    recent.add([])
    (only,) = recent.waits().steps
    assert (only.waits, only.waited_ns, only.unexplained_ns) == ({Reason.NEVER: 2 * MS}, 8 * MS, 6 * MS)


def test_it_is_bounded_and_keeps_the_newest() -> None:
    recent = RecentSpans()
    for number in range(5 * MAX_STEPS):
        add(recent, step(number, number, number + 1, waited_ms=0.5), stall(number, number + 0.5, "1", step=number))
    steps = recent.waits().steps
    assert [each.number for each in steps] == list(range(4 * MAX_STEPS - 1, 5 * MAX_STEPS - 1))
    longest = [line for line in recent.waits().longest if line[:2] in ("1.", "2.", "3.", "4.")]
    assert len(longest) == 3 and all(int(line.split()[5].strip(",")) >= 4 * MAX_STEPS - 1 for line in longest)
    add(recent, *[step(1000, 1000, 1001)] * (2 * MAX_SPANS))
    assert len(recent._kept) == MAX_SPANS


def test_a_stall_of_a_step_that_still_runs_is_no_step() -> None:
    recent = RecentSpans()
    add(recent, stall(1, 2, "1", step=5))
    recent.add([])
    assert recent.waits().steps == [] and recent.waits().reasons == {}


def test_spans_of_another_kind_say_nothing() -> None:
    """A newer or older stage may name other details: the page goes on without reasons."""
    recent = RecentSpans()
    add(recent, step(1, 0, 9, waited_ms=3), stall(1, 4, "1"), span("loader", "load", 0, 1, other=1))
    recent.add([])
    (only,) = recent.waits().steps
    assert (only.unexplained_ns, only.waits) == (3 * MS, {})


def test_the_overlap_is_the_load_time_in_which_compute_did_not_wait() -> None:
    """Loads from 0 to 10, waits from 4 to 9: half is hidden. After the last step nothing is known of waits."""
    recent = RecentSpans()
    assert recent.waits().overlap is None
    loads = [load(0, 6, 0, 2, "hint"), load(5, 10, 0, 3, "miss"), load(30, 90, 0, 4, "hint")]
    add(recent, step(1, 0, 20, waited_ms=5), stall(4, 9, "2"), *loads)
    recent.add([])
    assert (recent.waits().loading_ns, recent.waits().hidden_ns) == (10 * MS, 5 * MS)
    assert recent.waits().overlap == 0.5
