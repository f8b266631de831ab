"""What is exported: names, bounded labels, counts that never fall, and histograms that add up."""

from __future__ import annotations

import re
from typing import Any

import pytest
from expertflow.ipc.messages import HistogramCounts, Snapshot, StageStats
from expertflow.runtime.client.snapshots import merge_snapshots
from expertflow.runtime.engine.status_board import StatusBoard
from expertflow.runtime.metrics.collector import build_info, engine_metrics, exposition
from prometheus_client.parser import text_string_to_metric_families

S = 1_000_000_000
LABELS = {"device", "stage", "state", "reason", "type", "finished_reason", "le"}


def published(stage: str, epoch: int = 1, done: int = 0, queue: int = 0, **counters: float) -> StageStats:
    counts = HistogramCounts([0.1, 1.0], [done, 1, 2], 3 * S)
    histograms = {"queue_time": counts} if stage == "scheduler" else {}
    return StageStats(
        stage=stage, pid=1, epoch=epoch, time_ns=5, busy_ns=2 * S, stalled_ns=S, done=done, queue=queue,
        counters=counters, histograms=histograms,
    )  # fmt: skip


def samples(snapshot: Snapshot | None) -> dict[tuple[str, ...], float]:
    """(name, label values by the order of their names) -> value, as a real parser reads the exposition."""
    text = exposition([build_info(), *engine_metrics(snapshot)]).decode()
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert set(sample.labels) <= LABELS | {"version", "model", "link", "predictor", "kernels"}, sample
            key = (sample.name, *(value for _, value in sorted(sample.labels.items())))
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    return found


def busy_board(**loader: Any) -> StatusBoard:
    board = StatusBoard()
    for stage in ("compute", "loader", "scheduler"):
        board.on_started(stage, 1, 1)
        board.on_ready(stage, {"slots": 4, "slot_bytes": 25, "kv_budget_bytes": 200, "model": "tiny"})
    board.on_published("compute", published("compute", done=10, hits=30, misses=10, stall_ns=S // 2, kv_bytes=7))
    board.on_published("loader", published("loader", done=9, queue=2, loads=9, bytes=900, free=1, filling=1, held=2))
    ends = {"finished_stop": 3, "finished_length": 1, "error_busy": 2, "kv_reserved_bytes": 50}
    board.on_published("scheduler", published("scheduler", done=6, queue=5, running=2, **ends))
    return board


def test_values_have_base_units_and_the_names_of_the_field() -> None:
    found = samples(busy_board().snapshot())
    assert found["expertflow_stage_done_total", "cpu", "compute"] == 10
    assert found["expertflow_stage_busy_seconds_total", "cpu", "loader"] == 2
    assert found["expertflow_stage_stall_seconds_total", "cpu", "compute"] == 1
    assert found["expertflow_expert_stall_seconds_total", "cpu"] == 0.5
    assert found["expertflow_expert_loaded_bytes_total", "cpu"] == 900
    assert found["expertflow_slots", "cpu", "held"] == 2 and found["expertflow_slots_budget_bytes", "cpu"] == 100
    assert found["expertflow_request_success_total", "cpu", "stop"] == 3
    assert found["expertflow_request_errors_total", "cpu", "busy"] == 2
    assert found["expertflow_kv_cache_usage_perc", "cpu"] == 0.25
    assert found["expertflow_num_requests_running", "cpu"] == 2
    assert found["expertflow_stage_queue", "cpu", "loader"] == 2
    assert found["expertflow_engine_up",] == 1
    assert any(key[0] == "expertflow_engine_info" and "tiny" in key for key in found)


def test_buckets_are_cumulative() -> None:
    found = samples(busy_board().snapshot())
    name = "expertflow_request_queue_time_seconds"
    assert [found[name + "_bucket", "cpu", bound] for bound in ("0.1", "1.0", "+Inf")] == [6, 7, 9]
    assert found[name + "_count", "cpu"] == 9 and found[name + "_sum", "cpu"] == 3


def test_no_counter_falls_when_a_stage_is_restarted() -> None:
    """A rate over a restart would be wrong, or a whole epoch lost."""
    board = busy_board()
    before = samples(board.snapshot())
    for stage in ("compute", "loader", "scheduler"):
        board.on_died(stage, 1, "hung")
        board.on_started(stage, 2, 2)
    between = samples(board.snapshot())
    board.on_published("compute", published("compute", epoch=2, done=1, hits=1, misses=1, stall_ns=1, kv_bytes=3))
    board.on_published("loader", published("loader", epoch=2, loads=1, bytes=100, free=4, filling=0, held=0))
    board.on_published("scheduler", published("scheduler", epoch=2, done=1, finished_stop=1))
    after = samples(board.snapshot())
    for found in (between, after):
        for key, value in before.items():
            if re.search("_(total|bucket|count|sum)$", key[0]):
                assert found[key] >= value, key
    assert after["expertflow_expert_hits_total", "cpu"] == 31
    assert after["expertflow_request_success_total", "cpu", "stop"] == 4
    assert after["expertflow_request_success_total", "cpu", "length"] == 1, "counted by an earlier epoch alone"
    assert after["expertflow_request_queue_time_seconds_count", "cpu"] == 13
    assert after["expertflow_slots", "cpu", "held"] == 0, "a level is that of now"
    assert after["expertflow_stage_failures_total", "cpu", "hung", "loader"] == 1
    assert between["expertflow_stage_up", "cpu", "compute"] == 0
    assert after["expertflow_stage_restarts_total", "cpu", "compute"] == 1


def test_engines_of_a_group_are_told_apart() -> None:
    merged = merge_snapshots({"cuda:0": busy_board().snapshot(), "cuda:1": busy_board().snapshot()})
    found = samples(merged)
    assert found["expertflow_expert_hits_total", "cuda:1"] == 30
    assert found["expertflow_stage_done_total", "cuda:0", "compute"] == 10


def test_an_engine_that_does_not_answer_is_down() -> None:
    assert samples(None)["expertflow_engine_up",] == 0


@pytest.mark.parametrize("oldest_ns", [0, 1])
def test_the_queues_age_is_that_of_now(oldest_ns: int) -> None:
    """A scheduler that hangs publishes nothing, and its queue grows older."""
    board = StatusBoard()
    board.on_started("scheduler", 1, 1)
    board.on_published("scheduler", published("scheduler", oldest_waiting_ns=oldest_ns))
    age_s = samples(board.snapshot())["expertflow_request_queue_age_seconds", "cpu"]
    assert age_s > 1 if oldest_ns else age_s == 0
