"""Ratios of paired times and their intervals."""

from __future__ import annotations

import pytest
from expertflow.benchmarks.intervals import Interval, median_interval, paired_speedup


def test_constant_ratio_has_a_narrow_interval() -> None:
    assert paired_speedup([[(1.0, 3.0), (2.0, 6.0)], [(0.5, 1.5)]]) == pytest.approx((3.0, 3.0, 3.0))


def test_speedup_is_of_throughput_not_the_mean_of_ratios() -> None:
    assert paired_speedup([[(1.0, 10.0), (9.0, 9.0)]]).estimate == pytest.approx(1.9)


def test_runs_that_differ_widen_the_interval_more_than_steps_that_do() -> None:
    alike = paired_speedup([[(1.0, 2.0), (1.0, 4.0)] * 10] * 3)
    apart = paired_speedup([[(1.0, 2.0)] * 20, [(1.0, 3.0)] * 20, [(1.0, 4.0)] * 20])
    assert apart.high - apart.low > 1.5 * (alike.high - alike.low)


def test_no_pairs_is_an_error() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        paired_speedup([[], []])


def test_median_of_rounds_lies_within_them() -> None:
    found = median_interval([1.1, 0.9, 1.0])
    assert found.estimate == 1.0
    assert (found.low, found.high) == (0.9, 1.1)
    assert str(Interval(1.0, 0.9, 1.1)) == "1.00 (0.90–1.10)"
