"""Views of an engine, replayed from the answers of its supervisor."""

from __future__ import annotations

import json

import msgspec
from expertflow.runtime.client.snapshots import merge_snapshots
from expertflow.runtime.monitor.engine_views import EngineViews
from expertflow.runtime.monitor.view_json import view_json
from expertflow.tests.runtime.monitor.made_views import EXPERTS, LAYERS, MS, S, activity, point, snapshot, views_after


def test_a_view_has_all_that_is_known_of_the_second() -> None:
    view = views_after(4)
    compute = view.reading.stages[0]
    assert (compute.rate_per_s, compute.busy_share, compute.waiting_on) == (10.0, 0.5, "loader")
    assert [each.time_ns for each in view.points] == [second * S for second in range(1, 5)]
    assert (view.reading.memory.experts_bytes, view.reading.memory.kv_budget_bytes) == (9000, 50)
    assert len(view.waits.steps) == 3 and view.waits.reasons == {"predicted too late": 3 * 20 * MS}
    assert view.waits.overlap == 1 / 3


def test_points_that_come_twice_count_once() -> None:
    """In a group the slowest engine says from when on points are asked for."""
    views = EngineViews()
    for second in (1, 2, 3):
        merged = merge_snapshots({"cuda:0": snapshot(second), "cuda:1": snapshot(second)})
        both = {"cuda:0": [point(second)], "cuda:1": [point(each) for each in range(1, second + 1)]}
        shown = views.update(merged, both, {})
        assert views.since_ns == second * S
    assert [(view.engine, len(view.points)) for view in shown] == [("cuda:0", 3), ("cuda:1", 3)]
    assert shown[0].heat is None and shown[0].waits.steps == []


def test_an_engine_that_has_just_been_found_has_no_rates() -> None:
    (view,) = EngineViews().update(snapshot(9), {}, {})
    assert view.reading.stages[0].rate_per_s is None and view.point is None


def test_json_has_the_fields_of_a_reading_and_more() -> None:
    """Scripts read `top --once --json`: what was there stays where it was."""
    described = json.loads(msgspec.json.encode(view_json(views_after(3, {"loader": 1}))))
    assert {"engine", "seconds", "stages", "experts", "decoding", "pss_bytes"} <= described.keys()
    assert described["stages"][0]["stage"] == "compute" and described["experts"]["hits"] == 90
    assert described["down"] == ["loader"] and described["last_second"]["hit_share"] == 0.75
    assert described["cache"]["in_memory"] == LAYERS * EXPERTS // 3
    assert described["requests"]["requests"][0]["request_id"] == "request-1" and described["requests"]["total"] == 300
    assert described["waits"]["steps"][0]["waits"] == {"predicted too late": 20 * MS}
    fresh = json.loads(msgspec.json.encode(view_json(EngineViews().update(snapshot(1), {}, {})[0])))
    assert fresh["cache"] is None and fresh["requests"] is None and activity(1).heat is not None
