"""What the supervisor keeps for watchers: nothing unless somebody asks, and never more than a bound."""

from __future__ import annotations

from expertflow.ipc.messages import CacheHeat, OpenRequests, Span, Watched
from expertflow.ipc.stage.span_quota import SECOND_NS, SpanQuota
from expertflow.runtime.monitor.activity_board import MAX_KEPT, WATCH_NS, ActivityBoard

SPAN = Span("decode", 0, 1)
HEAT = CacheHeat(time_ns=1, layers=1, experts=2, residence=b"\x00\x02", use=b"\x00\xff")
REQUESTS = OpenRequests(time_ns=1, total=0, requests=[])


def test_nothing_is_kept_and_nobody_is_told_unless_somebody_asks() -> None:
    """I7: stages report only from the first question until a while after the last."""
    board = ActivityBoard()
    board.on_spans("compute", [SPAN])
    assert board.check(10 * WATCH_NS) is None and not board.is_watched
    activity, told = board.ask(-1, WATCH_NS)
    assert told == Watched(on=True) and activity.spans == [] and activity.heat is None
    assert board.ask(-1, 2 * WATCH_NS - 1)[1] is None, "stages are told once"
    assert board.check(3 * WATCH_NS - 2) is None
    assert board.check(3 * WATCH_NS - 1) == Watched(on=False) and not board.is_watched
    assert board.check(9 * WATCH_NS) is None


def test_each_watcher_gets_every_span_once() -> None:
    board = ActivityBoard()
    board.ask(-1, 0)
    board.on_spans("compute", [SPAN, SPAN])
    board.on_spans("loader", [])
    first, _ = board.ask(-1, 1)
    assert [(spans.stage, len(spans.spans)) for spans in first.spans] == [("compute", 2)]
    board.on_spans("loader", [SPAN])
    second, _ = board.ask(first.spans[-1].number, 2)
    late, _ = board.ask(-1, 2)
    assert [spans.stage for spans in second.spans] == ["loader"]
    assert [spans.stage for spans in late.spans] == ["compute", "loader"]


def test_spans_are_bounded() -> None:
    """A watched engine that draws a timeline as well publishes thousands a second."""
    board = ActivityBoard()
    for _ in range(50):
        board.ask(-1, 0)
        board.on_spans("compute", [SPAN] * 500)
    spans = board.ask(-1, 0)[0].spans
    assert sum(len(each.spans) for each in spans) == MAX_KEPT and spans[-1].number == 50


def test_what_a_dead_stage_said_is_forgotten() -> None:
    """Its requests and slots may be other ones after its restart."""
    board = ActivityBoard()
    board.ask(-1, 0)
    board.on_report(HEAT)
    board.on_report(REQUESTS)
    board.on_died("compute")
    assert (board.ask(-1, 0)[0].heat, board.ask(-1, 0)[0].requests) == (HEAT, REQUESTS)
    board.on_died("loader")
    board.on_died("scheduler")
    assert (board.ask(-1, 0)[0].heat, board.ask(-1, 0)[0].requests) == (None, None)


def test_a_stage_makes_the_first_spans_of_every_third_second() -> None:
    quota = SpanQuota(limit=2)
    made: list[int] = []
    for now_ns in range(0, 7 * SECOND_NS, SECOND_NS // 10):
        if quota.is_open(now_ns):
            quota.take()
            made.append(now_ns)
    assert made == [second * SECOND_NS + part for second in (0, 3, 6) for part in (0, SECOND_NS // 10)]
