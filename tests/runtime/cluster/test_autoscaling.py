"""The autoscaler follows a synthetic load within its bounds, and does not swing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from expertflow.errors import UsageError
from expertflow.runtime.cluster.autoscaling import Autoscaler, LoadSignal, ScalingBounds

BOUNDS = ScalingBounds(min_replicas=1, max_replicas=6, up_after_s=10, down_after_s=60)


def load(age_s: float = 0.0, stalls: float = 0.0, busy: float = 0.5) -> LoadSignal:
    return LoadSignal(queue_age_s=age_s, stall_shares=[stalls], busy_share=busy)


def follow(signal: Callable[[int, int], LoadSignal], seconds: int, start: int = 1) -> list[int]:
    """Return the number of replicas at each second; `signal` gets the second and that number."""
    scaler, current, counts = Autoscaler(BOUNDS), start, []
    for second in range(seconds):
        current = scaler.target(current, signal(second, current), float(second))
        counts.append(current)
    return counts


def test_an_old_queue_raises_it_up_to_the_bound() -> None:
    counts = follow(lambda second, count: load(age_s=20, busy=2), 200)
    assert counts[9] == 1 and counts[10] == 2 and max(counts) == 6
    assert counts == sorted(counts)


def test_stalls_of_busy_replicas_add_one_at_a_time() -> None:
    counts = follow(lambda second, count: load(stalls=0.8, busy=1.5), 45)
    assert [after - before for before, after in zip(counts, counts[1:], strict=False)].count(1) == counts[-1] - 1 >= 3


def test_stalls_of_idle_replicas_add_none() -> None:
    assert set(follow(lambda second, count: load(stalls=0.9, busy=0.5), 100)) == {1}


def test_a_short_peak_changes_nothing() -> None:
    assert set(follow(lambda second, count: load(age_s=30 if second % 10 < 8 else 0), 100)) == {1}


def test_an_idle_cluster_shrinks_to_its_least() -> None:
    counts = follow(lambda second, count: load(busy=0.0), 400, start=4)
    assert counts[59] == 4 and counts[-1] == 1 and min(counts) == 1


def test_a_load_that_fits_four_settles_at_four() -> None:
    """The queue grows below four replicas, and four are 70 % busy."""
    counts = follow(lambda second, count: load(age_s=10 if count < 4 else 0, busy=2.8 / count), 600)
    assert set(counts[100:]) == {4}


def test_bounds_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="must be from 1 to max_replicas"):
        ScalingBounds(min_replicas=3, max_replicas=2)
