"""The last hour of an engine: what is kept of each second, in how much memory, and what watchers get of it."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from expertflow.ipc.messages import HistoryPoint, Snapshot, StageStats
from expertflow.ipc.messages.history import History
from expertflow.runtime.client.monitors import combine_histories
from expertflow.runtime.client.watching import Watcher
from expertflow.runtime.monitor.history import MAX_BYTES, MAX_POINTS, HistoryRing, describe_point
from expertflow.tests.runtime.fakes import fake_engine, wait_until

S = 1_000_000_000
STAGES = ("compute", "loader", "predictor", "scheduler")


def stats(stage: str, at_s: float, done: int = 0, epoch: int = 1, busy_s: float = 0.0, **counters: float) -> StageStats:
    at_ns, busy_ns = round(at_s * S), round(busy_s * S)
    queue, stalled_ns = int(counters.pop("queue", 0)), int(counters.get("stall_ns", 0))
    return StageStats(
        stage=stage,
        pid=1,
        epoch=epoch,
        time_ns=at_ns,
        busy_ns=busy_ns,
        done=done,
        queue=queue,
        stalled_ns=stalled_ns,
        counters=counters,
    )


def snapshot(at_s: float, *stages: StageStats, restarts: int = 0, down: tuple[str, ...] = ()) -> Snapshot:
    names = [each.stage for each in stages]
    return Snapshot(
        time_ns=round(at_s * S),
        stages={each.stage: each for each in stages},
        pss_bytes=dict.fromkeys(["supervisor", *names], 7),
        restarts=dict.fromkeys(names, restarts),
        facts={},
        down=dict.fromkeys(down, 1),
    )


def points_of(*snapshots: Snapshot) -> list[HistoryPoint]:
    ring = HistoryRing()
    for each in snapshots:
        ring.add(each)
    return History(points=ring.since()).decode()


def test_a_point_has_what_happened_in_its_second() -> None:
    before = snapshot(
        10,
        stats("compute", 9.8, done=100, busy_s=5, hits=60, misses=40, stall_ns=1 * S, prefill_tokens=7),
        stats("loader", 9.9, done=3, loads=3, bytes=300, predicted=10, needed=8, predicted_needed=4),
        stats("scheduler", 9.9, running=2),
    )
    now = snapshot(
        11,
        stats("compute", 10.8, done=150, busy_s=5.5, hits=90, misses=50, stall_ns=1.25 * S, prefill_tokens=9),
        stats("loader", 10.9, done=5, loads=5, bytes=500, predicted=20, needed=13, predicted_needed=8),
        stats("scheduler", 10.9, running=3, queue=6),
    )
    (point,) = points_of(before, now)
    compute = point.stages["compute"]
    assert (compute.rate_per_s, compute.busy_share, compute.stall_share) == (50.0, 0.5, 0.25)
    assert (point.hits, point.misses, point.hit_share) == (30, 10, 0.75)
    assert (point.loads, point.loaded_bytes, point.precision, point.recall) == (2, 200, 0.4, 0.8)
    assert (point.decode_tokens_per_s, point.prefill_tokens_per_s) == (50.0, 2.0)
    assert (point.running, point.waiting) == (3, 6)
    assert msgspec.json.encode(describe_point(point))


def test_a_restart_gives_no_negative_rate() -> None:
    """A restarted stage counts from zero: the difference of two epochs would be negative."""
    before = snapshot(10, stats("compute", 9.9, done=1000, busy_s=9, hits=500, stall_ns=8 * S))
    dead = snapshot(11, before.stages["compute"], down=("compute",))
    again = snapshot(12, stats("compute", 11.9, done=4, epoch=2, busy_s=0.5, hits=6, stall_ns=0), restarts=1)
    missing, back = points_of(before, dead, again)
    assert missing.stages["compute"].waiting_on == "its restart" and missing.stages["compute"].rate_per_s is None
    compute = back.stages["compute"]
    assert (compute.rate_per_s, compute.busy_share, compute.restarts, back.hits) == (2.0, 0.25, 1, 6)


def test_a_counter_that_falls_is_counted_as_nothing() -> None:
    """Whatever a stage publishes, no chart may show a negative count or a share above one."""
    before = snapshot(1, stats("compute", 1, hits=50, stall_ns=0))
    now = snapshot(2, stats("compute", 2, busy_s=7, hits=20, stall_ns=5 * S))
    (point,) = points_of(before, now)
    assert (point.hits, point.stages["compute"].busy_share, point.stages["compute"].stall_share) == (0, 1.0, 1.0)


def test_a_second_without_a_publication_keeps_the_rate_but_not_for_long() -> None:
    """Stages publish about once a second: a line with a hole every few seconds would show nothing but that."""
    first, second = stats("compute", 1), stats("compute", 2, done=30)
    silent = [snapshot(2 + step, second) for step in range(9)]
    points = points_of(snapshot(1, first), *silent)
    assert [point.stages["compute"].rate_per_s for point in points] == [30.0] * 6 + [None] * 3
    assert [point.decode_tokens for point in points] == [30] + [0] * 8, "counts are never counted twice"


def busy_day(seconds: int, seed: int = 1) -> Iterator[Snapshot]:
    """Counters as large as those of a day under load, and a stage that dies now and then."""
    rng = random.Random(seed)
    names = ("hits", "misses", "stall_ns", "bytes", "loads", "evictions", "prefetches", "useful", "wasted",
             "predicted", "needed", "predicted_needed", "prefill_tokens", "running", "kv_bytes")  # fmt: skip
    epochs, counts = dict.fromkeys(STAGES, 1), {stage: dict.fromkeys(names, 10**12) for stage in STAGES}
    for second in range(seconds):
        if second % 1000 == 999:
            dead = rng.choice(STAGES)
            epochs[dead] += 1
            counts[dead] = dict.fromkeys(names, 0)
        for each in counts.values():
            for name in names:
                each[name] += rng.randrange(10**9)
        yield snapshot(
            second,
            *(
                stats(stage, second, counts[stage]["hits"], epochs[stage], second * rng.random(), **counts[stage])
                for stage in STAGES
            ),
        )


@pytest.mark.slow
def test_a_day_stays_within_the_bound() -> None:
    """24 hours, a point a second: the ring holds the last hour, within 8 MB and what Python needs beside it."""
    ring, largest = HistoryRing(), 0
    for second, each in enumerate(busy_day(24 * 3600 // 20)):
        for repeat in range(20):
            ring.add(msgspec.structs.replace(each, time_ns=(20 * second + repeat) * S))
        largest = max(largest, ring.size_bytes)
    assert len(ring) == MAX_POINTS and largest <= MAX_BYTES
    points = History(points=ring.since()).decode()
    assert [point.time_ns for point in points] == [second * S for second in range(86_400 - MAX_POINTS, 86_400)]
    counts = [value for point in points for value in msgspec.structs.astuple(point)[3:]]
    assert min(counts) >= 0


def test_an_hour_takes_little_more_than_its_bytes() -> None:
    """What Python keeps beside each point must not break the bound of the points themselves."""
    days = list(busy_day(20))
    tracemalloc.start()
    try:
        ring = HistoryRing()
        for second in range(MAX_POINTS + 100):
            ring.add(msgspec.structs.replace(days[second % 20], time_ns=second * S))
        held_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(ring) == MAX_POINTS and ring.size_bytes < held_bytes < 3_000_000


def test_long_names_shorten_the_history_instead_of_breaking_the_bound() -> None:
    ring = HistoryRing(max_points=1000, max_bytes=20_000)
    for second in range(300):
        ring.add(snapshot(second, stats("compute" * 100, second)))
    assert ring.size_bytes <= 20_000 and 10 < len(ring) < 100
    assert ring.since((300 - 3) * S) == ring.since()[-2:]


def test_watchers_get_the_points_that_they_have_not_seen() -> None:
    """A page that asks every second must not get an hour each time."""
    with fake_engine(("compute", "loader")) as engine, Watcher(engine.address) as watcher:
        wait_until(lambda: len(watcher.history()[""]) >= 2)
        points = watcher.history()[""]
        assert set(points[-1].stages) == {"compute", "loader", "supervisor"}
        assert points[-1].stages["supervisor"].pss_bytes > 0
        newer = watcher.history(points[-1].time_ns)[""]
        assert all(point.time_ns > points[-1].time_ns for point in newer)
        assert watcher.snapshot().stages.keys() == {"compute", "loader"}, "answers of two kinds on one socket"


def test_engines_of_a_group_keep_their_histories_apart(runtime_base: Path) -> None:
    ring = HistoryRing()
    for second in range(3):
        ring.add(snapshot(second, stats("compute", second)))
    histories = [History(device="cuda:1 (its name)", points=ring.since()), History(points=ring.since(S))]
    combined = combine_histories(histories, is_group=True)
    assert {engine: len(points) for engine, points in combined.items()} == {"cuda:1": 2, "engine 1": 1}


@pytest.mark.parametrize("since_ns", [-1, 0, 2**62])
def test_any_moment_may_be_asked_for(since_ns: int) -> None:
    ring = HistoryRing()
    for second in range(3):
        ring.add(snapshot(second, stats("compute", second)))
    assert len(ring.since(since_ns)) == (0 if since_ns > 0 else 2)
