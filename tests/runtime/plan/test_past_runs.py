"""Earlier runs: kept in a bounded file without prompts, read back, and used to correct the next forecast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from expertflow.configs.schema import Config
from expertflow.runtime.plan.disk_rate import DiskRate
from expertflow.runtime.plan.forecast import Rates, Routing, forecast_step
from expertflow.runtime.plan.past_runs import (
    FILE,
    MAX_RUNS,
    MOST_CORRECTION,
    RECENT,
    Past,
    PastRun,
    change_past,
    learn_correction,
    learn_routing,
    median_error,
    read_past,
)
from expertflow.runtime.plan.speed import Counted, expected_speed, record_run
from expertflow.runtime.plan.speed_words import past_words
from expertflow.tests.runtime.plan.made import made_model, made_sizes, made_table
from msgspec import structs

TIER = Config(model="m", tier="host", link_rate="1GB")
SIZES = made_sizes()
RATES = Rates(kernels=made_table(), read_bytes_per_s=1e9)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "expertflow"


def counted(slots: int, rows: int, routing: Routing, slower: float = 1.0) -> Counted:
    """Counters of an engine whose routing and speed are known."""
    step = forecast_step(SIZES, slots, rows, structs.replace(RATES, correction=slower), routing)
    experts = forecast_step(SIZES, 0, rows, RATES, structs.replace(routing, reuse=0.0)).misses
    return Counted(
        decode_steps=100,
        decode_tokens=100 * rows,
        decode_ns=round(100e9 * step.step_s),
        decode_stall_ns=round(100e9 * (step.step_s - step.compute_s)),
        decode_experts=round(100 * experts),
        decode_misses=round(100 * step.misses),
        misses=round(100 * step.misses) + 50,
        loads=round(100 * step.misses) + 50 + slots,
    )


@pytest.mark.parametrize("rows", [1, 8])
def test_one_run_teaches_the_forecast_of_other_budgets(rows: int) -> None:
    """The prior was off by far; one run with half of the experts corrects a quarter and an eighth."""
    truth = Routing(reuse=6.0, reuse_of_rows=rows, distinct=0.6)
    model = made_model()
    run = record_run(model, TIER, 512, counted(512, rows, truth))
    assert run is not None and run.rows == rows
    runs = read_past().of(model.machine_key, model.model_key)
    for slots in (256, 128):
        expected = forecast_step(SIZES, slots, rows, RATES, truth).step_s
        before = forecast_step(SIZES, slots, rows, RATES, Routing()).step_s
        after = forecast_step(SIZES, slots, rows, RATES, learn_routing(runs, SIZES, rows)).step_s
        assert after == pytest.approx(expected, rel=0.02) and abs(before - expected) > 0.2 * expected


def test_a_run_with_everything_in_slots_corrects_computing() -> None:
    model = made_model()
    record_run(model, TIER, 1024, counted(1024, 8, Routing(), slower=1.7))
    runs = read_past().runs
    assert learn_correction(runs, SIZES, RATES, 8) == pytest.approx(1.7, rel=0.01)
    assert learn_correction([], SIZES, RATES, 8) == 1.0
    assert learn_routing(runs, SIZES, 8).reuse == Routing().reuse, "nothing missed says nothing of reuse"


def test_a_run_beside_other_work_does_not_spoil_the_next_forecast() -> None:
    """With both cores taken by others the widened model decoded 17 times slower than on a quiet machine."""
    model = made_model()
    record_run(model, TIER, 1024, counted(1024, 1, Routing(), slower=17.0))
    assert learn_correction(read_past().runs, SIZES, RATES, 1) == MOST_CORRECTION
    for _ in range(RECENT):
        record_run(model, TIER, 1024, counted(1024, 1, Routing(), slower=1.1))
    assert learn_correction(read_past().runs, SIZES, RATES, 1) == pytest.approx(1.1, rel=0.01)


def test_the_error_of_past_forecasts_is_the_median_and_is_told() -> None:
    model = made_model()
    first = record_run(model, TIER, 1024, counted(1024, 1, Routing(), slower=2.0))
    assert first is not None and first.error == pytest.approx(1.0, rel=0.01)
    second = record_run(model, TIER, 1024, counted(1024, 1, Routing(), slower=2.0))
    assert second is not None and second.error < 0.01, "the first run taught it"
    once = Past(runs=read_past().runs[:1])
    assert "off by 100 % (one run of this model)" in past_words(expected_speed(model, TIER, 512, once, None))
    third = structs.replace(second, forecast_s=second.step_s / 1.1)
    change_past(lambda past: past.runs.append(third))
    past = read_past()
    assert median_error(past.runs) == pytest.approx(0.1, rel=0.01) and median_error([]) is None
    words = past_words(expected_speed(model, TIER, 512, past, None))
    assert "off by 10 % (median of 3 runs of this model)" in words
    other = expected_speed(made_model("b"), TIER, 512, past, None)
    assert "3 runs of other models" in past_words(other) and "guess" in other.routing
    assert past_words(expected_speed(model, TIER, 512, Past(), None)) == "none"


def test_short_runs_say_nothing() -> None:
    few = structs.replace(counted(512, 1, Routing()), decode_steps=3)
    assert record_run(made_model(), TIER, 512, few) is None and read_past() == Past()


def test_the_file_stays_bounded_and_survives_nonsense(cache: Path) -> None:
    run = PastRun(
        machine="m", model="m", share=0.5, rows=1, steps=9, step_s=1, compute_s=1, experts=1, loads=1, forecast_s=1
    )
    change_past(lambda past: past.runs.extend([run] * (MAX_RUNS + 50)))
    rate = DiskRate(bytes_per_s=1e9, read_bytes=1, seconds=1, direct=True, file_system="ext4")
    change_past(lambda past: past.disks.update({str(number): rate for number in range(50)}))
    past = read_past()
    assert len(past.runs) == MAX_RUNS and list(past.disks) == [str(number) for number in range(30, 50)]
    assert (cache / FILE).stat().st_size < 100_000
    (cache / FILE).write_text("{ nonsense")
    assert read_past() == Past()
    change_past(lambda past: past.runs.append(run))
    assert read_past().runs == [run]


def test_without_a_home_nothing_is_kept_and_nothing_fails() -> None:
    def no_home() -> Path:
        raise RuntimeError("no home")

    folder: Callable[[], Path] = no_home
    change_past(lambda past: past.runs.clear(), folder)
    assert read_past(folder) == Past()
