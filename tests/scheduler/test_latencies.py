"""Histograms of the times of requests: each token and each end is counted once, in the bucket of its time."""

from __future__ import annotations

import pytest
from expertflow.ipc.messages import HistogramCounts
from expertflow.tests.scheduler.world import MS, World, finished, make_limits
from expertflow.workers.scheduler.latencies import Histogram


@pytest.mark.parametrize(("duration_ns", "bucket"), [(0, 0), (100 * MS, 0), (100 * MS + 1, 1), (3000 * MS, 2)])
def test_a_bound_belongs_to_its_bucket(duration_ns: int, bucket: int) -> None:
    """Prometheus' buckets are `le`: up to the bound, the bound included."""
    histogram = Histogram([0.1, 1.0])
    histogram.observe(duration_ns)
    counts = histogram.counts()
    assert [index for index, count in enumerate(counts.counts) if count] == [bucket]
    assert counts.sum_ns == duration_ns


def test_counts_add_up() -> None:
    one, two = HistogramCounts([1.0], [2, 3], 5), HistogramCounts([1.0], [10, 20], 7)
    assert one + two == HistogramCounts([1.0], [12, 23], 12)


def test_every_token_and_end_is_counted_once() -> None:
    world = World()
    for length in (1, 4, 6):
        world.submit([1, 2, length], max_new_tokens=length, eos_ids=[])
    world.run_until_idle()
    counts = world.core.histograms
    assert {name: sum(found.counts) for name, found in counts.items()} == {
        "queue_time": 3,
        "time_to_first_token": 3,
        "inter_token_latency": 1 + 4 + 6 - 3,
        "e2e_latency": 3,
    }
    assert world.core.ends == {"finished_length": 3}
    assert world.core.statistics().prompt_tokens == 9


def test_a_death_of_compute_is_a_long_gap_not_a_second_first_token() -> None:
    """Clients see a pause; counted as a first token it would hide in the wrong histogram."""
    world = World()
    book = world.submit(max_new_tokens=6, eos_ids=[])
    world.tick()
    world.compute_step()
    world.kill_compute()
    world.now_ns += 30_000 * MS
    world.start_compute()
    world.run_until_idle()
    counts = world.core.histograms
    assert len(finished(book).token_ids) == 6 and sum(counts["time_to_first_token"].counts) == 1
    gaps = counts["inter_token_latency"]
    assert sum(gaps.counts) == 5 and gaps.sum_ns >= 30_000 * MS
    assert [gaps.bounds_s[index] for index, count in enumerate(gaps.counts) if count][-1] == 40.0


def test_the_oldest_request_that_waits_is_known() -> None:
    world = World(joined=False)
    world.now_ns = 5 * MS
    world.submit()
    world.tick(7 * MS)
    world.submit()
    assert world.core.statistics().oldest_waiting_ns == 5 * MS
    world.start_compute()
    world.run_until_idle()
    assert world.core.statistics().oldest_waiting_ns == 0


def test_errors_are_counted_by_type() -> None:
    world = World(make_limits(queue_limit=1))
    world.submit([1] * 10_000)
    world.kill_compute()
    for _ in range(3):
        world.submit()
    assert world.core.ends == {"error_request": 1, "error_busy": 2}
