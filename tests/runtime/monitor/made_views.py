"""Answers of an engine made by hand, and the views that come of them."""

from __future__ import annotations

from expertflow.ipc.messages import (
    Activity,
    CacheHeat,
    HistoryPoint,
    OpenRequest,
    OpenRequests,
    Snapshot,
    Span,
    StagePoint,
    StageSpans,
    StageStats,
)
from expertflow.runtime.monitor.engine_views import EngineView, EngineViews
from expertflow.workers.loader.explanations import Reason

S = 1_000_000_000
MS = 1_000_000
STAGES = ("compute", "loader", "predictor", "scheduler")
LAYERS, EXPERTS = 4, 300


def snapshot(second: int, down: dict[str, int] | None = None) -> Snapshot:
    """At the end of a second, in which compute did ten tokens."""
    counters: dict[str, int | float] = {"hits": 30 * second, "misses": 10 * second, "held": 8, "filling": 1}
    stats = [
        StageStats(stage=stage, pid=7, epoch=1, time_ns=second * S, busy_ns=second * S // 2, done=10 * second,
                   queue=3, waiting_on="loader" if stage == "compute" else "", counters=counters)
        for stage in STAGES
    ]  # fmt: skip
    return Snapshot(
        time_ns=second * S,
        stages={each.stage: each for each in stats},
        pss_bytes=dict.fromkeys([*STAGES, "supervisor"], 5_000_000),
        restarts=dict.fromkeys(STAGES, 0),
        facts={
            "loader": {"slots": 10, "slot_bytes": 1000, "experts_bytes": 9000},
            "scheduler": {"kv_budget_bytes": 50},
        },
        down=down or {},
    )


def point(second: int) -> HistoryPoint:
    stages = {stage: StagePoint(10.0 + second, 0.5, 0.25, "", 3, 0, 5_000_000) for stage in STAGES}
    return HistoryPoint(second * S, 1.0, stages, hits=30, misses=10, decode_tokens=10, running=2, waiting=3)


def spans(second: int) -> list[StageSpans]:
    """One step of 80 ms that waited 20 ms, for an expert of layer 1."""
    start, number = second * S, second * 2
    wait: dict[str, int | str] = {"step": second, "layer": 1, "experts": "5", "wanted": 2, "arrived": "5 miss"}
    miss: dict[str, int | str] = {
        "step": second, "layer": 1, "expert": 5, "reason": str(Reason.LATE), "chance_percent": 20,
        "wanted_percent": 40, "under_way": "", "slots": 8,
    }  # fmt: skip
    step: dict[str, int | str] = {"step": second, "unit": 1, "rows": 2, "waited_us": 20_000}
    stall = Span("stall", start + 10 * MS, start + 30 * MS, 1, wait)
    compute = [stall, Span("decode", start, start + 80 * MS, 0, step)]
    load: dict[str, int | str] = {"layer": 1, "expert": 5, "cause": "miss", "step": second, "slot": 2, "queued_us": 0}
    loader = [Span("miss", start + 10 * MS, start + 10 * MS, 128, miss), Span("load", start, start + 30 * MS, 0, load)]
    return [StageSpans(number, "compute", compute), StageSpans(number + 1, "loader", loader)]


def activity(second: int, request_id: str = "request-1", user: str = "ann") -> Activity:
    residence = bytes(2 if key % 3 == 0 else 1 if key % 7 == 0 else 0 for key in range(LAYERS * EXPERTS))
    use = bytes(key % 256 for key in range(LAYERS * EXPERTS))
    heat = CacheHeat(time_ns=second * S, layers=LAYERS, experts=EXPERTS, residence=residence, use=use)
    listed = [OpenRequest(request_id, "decode", 12, 34, 56, 7 * S, 0, user)] * 30
    requests = OpenRequests(time_ns=second * S, total=300, requests=listed)
    return Activity(time_ns=second * S, heat=heat, requests=requests, spans=spans(second))


def views_after(seconds: int, down: dict[str, int] | None = None, **texts: str) -> EngineView:
    """Return the view of the only engine after so many seconds."""
    views = EngineViews()
    for second in range(1, seconds):
        views.update(snapshot(second), {"": [point(second)]}, {"": activity(second, **texts)})
    (view,) = views.update(snapshot(seconds, down), {"": [point(seconds)]}, {"": activity(seconds, **texts)})
    return view
