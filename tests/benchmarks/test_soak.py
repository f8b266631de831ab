"""The soak run: what it calls flat, and a short run of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from expertflow.benchmarks.soak import __main__ as soak
from expertflow.benchmarks.soak import short_history
from expertflow.benchmarks.soak.__main__ import figures_of
from expertflow.benchmarks.soak.picture import draw_soak
from expertflow.benchmarks.soak.samples import Moment, Sample, name_of
from expertflow.benchmarks.soak.slopes import slope_of
from expertflow.ipc.messages import Snapshot
from expertflow.runtime.engine import status_board

REQUESTS = list(range(250, 50_001, 250))


def series(growth: float, noise: float = 1.0, seed: int = 0, alike: float = 0.0) -> list[float]:
    """200 values around 100 that grow by so much over the run; `alike`: correlation of neighbours."""
    rng, rest, values = np.random.default_rng(seed), 0.0, []
    for request in REQUESTS:
        rest = alike * rest + noise * rng.normal()
        values.append(100 + growth * request / 50_000 + rest)
    return values


@pytest.mark.parametrize("alike", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("growth", [0.0, 3.0])
def test_the_interval_holds_the_true_slope_nearly_always(growth: float, alike: float) -> None:
    slopes = [slope_of(REQUESTS, series(growth, seed=seed, alike=alike), 50_000) for seed in range(100)]
    covered = [slope.low <= growth <= slope.high for slope in slopes]
    assert sum(covered) >= 88
    if growth == 0:
        assert sum(slope.is_flat for slope in slopes) >= 94


def test_windows_in_which_another_program_had_the_machine_change_little() -> None:
    values = series(0.0)
    slow = [value * (5 if 150 <= number < 165 else 1) for number, value in enumerate(values)]
    plain, disturbed = (slope_of(REQUESTS, each, 50_000) for each in (values, slow))
    assert abs(disturbed.growth - plain.growth) < 1.0
    assert disturbed.is_flat


@pytest.mark.parametrize("growth", [5.0, 50.0])
def test_growth_is_found(growth: float) -> None:
    slope = slope_of(REQUESTS, series(growth), 50_000)
    assert not slope.is_flat and slope.low < growth < slope.high


def test_what_grows_less_than_a_hundredth_is_flat() -> None:
    slope = slope_of(REQUESTS, series(0.5, noise=0.01), 50_000)
    assert slope.is_flat and slope.is_certain and slope.low > 0


def test_a_step_up_at_the_start_is_warm_up() -> None:
    values = [50.0] * 80 + [100.0] * 120
    assert slope_of(REQUESTS, values, 50_000).growth == pytest.approx(0.0)


def test_noise_too_large_to_tell_is_not_called_certain() -> None:
    slope = slope_of(REQUESTS, series(0.0, noise=30.0), 50_000)
    assert slope.is_flat and not slope.is_certain


def test_too_few_samples_have_no_slope() -> None:
    with pytest.raises(ValueError, match="too few"):
        slope_of(REQUESTS[:40], series(0.0)[:40], 50_000)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["python", "-P", "-m", "expertflow.workers.compute", "11"], "compute"),
        (["python", "-P", "-m", "expertflow.runtime.http", "11"], "http"),
        (["python", "-P", "-m", "expertflow", "serve"], "supervisor"),
    ],
)
def test_processes_have_the_names_of_their_stages(command: list[str], name: str) -> None:
    assert name_of(command) == name


def moments(leak: float, slower: float = 0.0) -> list[Moment]:
    """Moments of one process that leaks so many MiB, and of requests that take `slower` percent more at the end."""
    found, cpu_s = [], 3.0
    for number, (request, value) in enumerate(zip(REQUESTS, series(leak), strict=True)):
        way_ms = (10.0 + 5 * (number % 4)) * (1 + slower / 100 * request / 50_000)
        cpu_s += way_ms * 250 / 1000
        found.append(
            Moment(request, request / 40, {"compute": Sample(value, value, 9, 5, cpu_s)}, way_ms, 2 * way_ms, way_ms)
        )
    return found


def test_a_leak_is_said_and_what_is_flat_as_well(tmp_path: Path) -> None:
    assert figures_of(moments(0.0), [])["flat"]
    figures = figures_of(moments(20.0), [])
    assert not figures["flat"]
    verdicts = {row["series"]: row["verdict"] for row in figures["rows"]}
    assert verdicts["private_mib"] == "grows" and verdicts["descriptors"] == "flat"
    assert all(verdict == "flat" for name, verdict in verdicts.items() if "ms" in name), "ways differ, none grows"
    draw_soak(moments(0.0), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_requests_that_become_slower_are_said() -> None:
    rows = figures_of(moments(0.0, slower=30.0), [])["rows"]
    assert {row["verdict"] for row in rows if row["process"] == "requests"} == {"grows"}


def test_the_history_of_a_soak_is_full_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_board, "HistoryRing", status_board.HistoryRing)
    short_history.shorten()
    ring = status_board.StatusBoard()._history
    for second in range(200):
        ring.add(Snapshot(time_ns=second * 10**9, stages={}, pss_bytes={}, restarts={}, facts={}))
    assert len(ring) == short_history.POINTS


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_run_samples_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["soak", "--requests", "2700", "--window", "50", "--batch", "16", "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):  # flat or not: so few requests are all warm-up
        soak.main()
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["requests"] == 2700 and figures["left"] == []
    assert {row["process"] for row in figures["rows"]} == {
        "supervisor", "http", "compute", "loader", "predictor", "scheduler", "requests",
    }  # fmt: skip
