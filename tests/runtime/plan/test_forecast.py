"""The forecast of speed: properties that hold for any machine and model, and disturbed kernel tables."""

from __future__ import annotations

import pytest
from expertflow.runtime.plan.forecast import Rates, Routing, distinct_experts, forecast_step, miss_share, reuse_of
from expertflow.runtime.plan.kernel_times import shape_s, step_times_s
from expertflow.tests.runtime.plan.made import EXPERT, LINEAR, made_sizes, made_table
from expertflow.workers.kernels.table import ROW_STEPS, KernelTable
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

ROUTINGS = st.builds(
    Routing, reuse=st.floats(0, 20), reuse_of_rows=st.integers(1, 64), distinct=st.floats(0.05, 2, allow_nan=False)
)
RATES = st.builds(
    Rates,
    kernels=st.builds(made_table, st.floats(1, 10**5)),
    read_bytes_per_s=st.floats(1e6, 1e11),
    correction=st.floats(0.1, 10),
)
ROWS = st.integers(1, 600)


@given(RATES, ROUTINGS, ROWS, st.integers(0, 1024), st.integers(0, 1024))
def test_more_slots_are_never_slower(rates: Rates, routing: Routing, rows: int, few: int, more: int) -> None:
    slower, faster = (forecast_step(made_sizes(), slots, rows, rates, routing) for slots in sorted((few, more)))
    assert faster.step_s <= slower.step_s and faster.misses <= slower.misses


@given(RATES, ROUTINGS, ROWS, st.integers(0, 1024))
def test_the_bound_is_never_beaten_and_nothing_is_counted_twice(
    rates: Rates, routing: Routing, rows: int, slots: int
) -> None:
    step = forecast_step(made_sizes(), slots, rows, rates, routing)
    assert max(step.compute_s, step.read_s) <= step.step_s <= step.compute_s + step.read_s
    assert step.tokens_per_s == pytest.approx(rows / step.step_s)


@given(RATES, ROUTINGS, ROWS, st.integers(0, 1024), st.floats(1, 100))
def test_a_faster_disk_is_never_slower(rates: Rates, routing: Routing, rows: int, slots: int, factor: float) -> None:
    fast = structs.replace(rates, read_bytes_per_s=rates.read_bytes_per_s * factor)
    sizes = made_sizes()
    assert (
        forecast_step(sizes, slots, rows, fast, routing).step_s
        <= forecast_step(sizes, slots, rows, rates, routing).step_s
    )


def test_with_every_expert_in_a_slot_nothing_is_read() -> None:
    rates = Rates(kernels=made_table(), read_bytes_per_s=1e6)
    step = forecast_step(made_sizes(), 1024, 8, rates, Routing())
    assert (step.misses, step.read_s, step.step_s, step.bound) == (0, 0, step.compute_s, "computing")
    assert forecast_step(made_sizes(), 1, 8, rates, Routing()).bound == "reading"


def test_rows_share_experts_as_chance_has_it() -> None:
    """One row uses its own top-k, thousands use all, and 8 of 64 by 8 rows are 42: 64 (1 − (7/8)^8)."""
    sizes = made_sizes()
    found = [distinct_experts(sizes, rows, Routing()) for rows in (1, 8, 10_000)]
    assert found == pytest.approx([8, 42.0, 64], abs=0.1)


@given(st.floats(0.01, 0.99), st.floats(0.1, 15))
def test_reuse_is_found_again_from_what_it_causes(share: float, reuse: float) -> None:
    routing = Routing(reuse=reuse)
    missed = miss_share(share, 1, routing)
    if 1e-3 < missed < 0.999:
        assert reuse_of(missed, share) == pytest.approx(reuse, rel=1e-6)


def test_a_disturbed_step_of_a_kernel_table_is_not_believed() -> None:
    """A table that a busy machine left said 16 ms for one row and 0.3 ms for two."""
    table = made_table()
    times = [dict(step) for step in table.times_us[EXPERT]]
    times[0]["native"] *= 50
    disturbed = structs.replace(table, times_us={**table.times_us, EXPERT: times})
    assert step_times_s(disturbed, EXPERT)[0] == step_times_s(table, EXPERT)[1]


def test_steps_without_a_time_go_on_in_proportion() -> None:
    table = made_table()
    cut = structs.replace(table, times_us={EXPERT: [*table.times_us[EXPERT][:3], *[{}] * 7]})
    times = step_times_s(cut, EXPERT)
    assert times[3:] == pytest.approx([times[2] * 2**step for step in range(1, 8)])
    assert shape_s(table, LINEAR.key, 2 * 10**6, 1024) == pytest.approx(2 * step_times_s(table, LINEAR.key)[-1])


def test_without_a_table_there_is_a_forecast_still() -> None:
    rates = Rates(kernels=KernelTable(), read_bytes_per_s=1e9)
    steps = [forecast_step(made_sizes(), 256, rows, rates, Routing()).step_s for rows in ROW_STEPS]
    assert steps == sorted(steps) and steps[0] > 0
