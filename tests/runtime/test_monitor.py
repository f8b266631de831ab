"""Figures from snapshots: rates, shares, and counts over the restarts of a stage."""

from __future__ import annotations

import msgspec
import pytest
from expertflow.ipc.messages import Snapshot, StageStats
from expertflow.runtime.monitor.readings import Meter, read_pair
from expertflow.runtime.monitor.tables import decoding_facts

S = 1_000_000_000


def stats(stage: str, at_s: float, done: int = 0, epoch: int = 1, busy_s: float = 0.0, **counters: float) -> StageStats:
    at_ns, busy_ns = round(at_s * S), round(busy_s * S)
    return StageStats(stage=stage, pid=1, epoch=epoch, time_ns=at_ns, busy_ns=busy_ns, done=done, counters=counters)


def snapshot(at_s: float, *stages: StageStats, restarts: int = 0) -> Snapshot:
    facts: dict[str, dict[str, int | float | str]] = {"loader": {"slots": 10, "slot_bytes": 100, "experts_bytes": 3600}}
    names = [each.stage for each in stages]
    return Snapshot(
        time_ns=round(at_s * S),
        stages={each.stage: each for each in stages},
        pss_bytes=dict.fromkeys(["supervisor", *names], 7),
        restarts=dict.fromkeys(names, restarts),
        facts=facts,
    )


def test_rates_are_over_the_time_between_two_publications() -> None:
    """Snapshots are taken at other moments than stages publish: dividing by their distance would be wrong."""
    before = snapshot(10.9, stats("compute", 10, done=100, busy_s=5, hits=60, misses=40, stall_ns=1 * S))
    now = snapshot(13.1, stats("compute", 12, done=150, busy_s=6, hits=90, misses=50, stall_ns=1.5 * S))
    reading = read_pair(before, now)
    compute = reading.stages[0]
    assert (compute.stage, compute.rate_per_s, compute.busy_share) == ("compute", 25.0, 0.5)
    assert (reading.experts.hits, reading.experts.misses) == (90, 50)
    assert reading.experts.stall_share == 0.25
    assert reading.experts.hit_share == pytest.approx(90 / 140)


def test_bytes_a_second_come_from_the_loader() -> None:
    reading = read_pair(snapshot(0, stats("loader", 0, bytes=1000)), snapshot(2, stats("loader", 2, bytes=5000)))
    assert (reading.experts.bytes_per_s, reading.experts.loaded_bytes) == (2000.0, 5000)
    assert (reading.experts.slots_bytes, reading.experts.experts_bytes) == (1000, 3600)


def test_what_is_not_known_is_none() -> None:
    """A stage that has published once, or not since, has no rate; zero would be a lie."""
    one = stats("compute", 1, done=5)
    for before in (snapshot(0), snapshot(0, one)):
        line = read_pair(before, snapshot(2, one)).stages[0]
        assert (line.rate_per_s, line.busy_share) == (None, None)
    supervisor = read_pair(snapshot(0), snapshot(2)).stages[0]
    assert (supervisor.stage, supervisor.pid, supervisor.pss_bytes) == ("supervisor", None, 7)


def test_a_stage_that_is_down_waits_for_its_restart() -> None:
    """What it published before it died says nothing of now."""
    now = msgspec.structs.replace(snapshot(2, stats("compute", 1), stats("loader", 1)), down={"compute": 1})
    assert [line.waiting_on for line in read_pair(snapshot(0), now).stages] == ["its restart", "", ""]


def test_a_restarted_stage_does_not_count_backwards() -> None:
    """Its counters begin at zero: the difference would be negative."""
    before = snapshot(0, stats("compute", 1, done=100))
    now = snapshot(4, stats("compute", 5, done=8, epoch=2), restarts=1)
    line = read_pair(before, now).stages[0]
    assert (line.rate_per_s, line.restarts) == (2.0, 1)


def test_the_way_to_decode_is_that_of_now_and_counts_are_of_the_time() -> None:
    """A level has no rate; before the scheduler has published nothing is known."""
    before = stats("scheduler", 1, units_wanted=1, prediction_wanted=1, grouping_wanted=0, regroupings=5, trials=1)
    now = stats("scheduler", 2, units_wanted=2, prediction_wanted=0, grouping_wanted=1, regroupings=9, trials=3)
    meter = Meter(snapshot(1, before))
    meter.add(snapshot(2, now))
    line = meter.reading(1.0).decoding
    assert line is not None
    assert (line.units, line.prediction, line.grouping, line.regroupings, line.trials) == (2, False, True, 4, 2)
    assert decoding_facts(line)["prediction"] == "off: it cost more than it saved"
    assert read_pair(snapshot(0), snapshot(2)).decoding is None and decoding_facts(None) == {}


def test_a_meter_adds_up_over_restarts() -> None:
    """What a stage did before it was killed has happened."""
    meter = Meter(snapshot(0, stats("compute", 0, done=10, hits=1)))
    meter.add(snapshot(2, stats("compute", 2, done=30, hits=4, kv_bytes=50)))
    meter.add(snapshot(8, stats("compute", 8, done=5, hits=2, epoch=2)))
    meter.add(snapshot(10, stats("compute", 10, done=15, hits=3, epoch=2)))
    reading = meter.reading(5.0)
    assert reading.stages[0].rate_per_s == pytest.approx((20 + 15) / 5)
    assert (reading.experts.hits, reading.experts.kv_bytes, reading.seconds) == (6, 50, 5.0)
