"""The soak run: what it calls flat, and a short run of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from expertflow.benchmarks.soak import __main__ as soak
from expertflow.benchmarks.soak.__main__ import figures_of
from expertflow.benchmarks.soak.picture import draw_soak
from expertflow.benchmarks.soak.samples import Moment, Sample, name_of
from expertflow.benchmarks.soak.slopes import slope_of

REQUESTS = list(range(500, 50_001, 500))


def series(growth: float, noise: float = 1.0, seed: int = 0) -> list[float]:
    """100 values around 100 that grow by so much over the run."""
    rng = np.random.default_rng(seed)
    return [100 + growth * request / 50_000 + noise * rng.normal() for request in REQUESTS]


def test_noise_is_flat() -> None:
    slopes = [slope_of(REQUESTS, series(0.0, seed=seed), 50_000) for seed in range(20)]
    assert all(slope.is_flat for slope in slopes)
    covered = [slope.low <= 0 <= slope.high for slope in slopes]
    assert sum(covered) >= 16, "an interval of 95 % holds the true slope nearly always"


@pytest.mark.parametrize("growth", [5.0, 50.0])
def test_growth_is_found(growth: float) -> None:
    slope = slope_of(REQUESTS, series(growth), 50_000)
    assert not slope.is_flat and slope.low < growth < slope.high


def test_what_grows_less_than_a_hundredth_is_flat() -> None:
    slope = slope_of(REQUESTS, series(0.5, noise=0.01), 50_000)
    assert slope.is_flat and slope.is_certain and slope.low > 0


def test_a_step_up_at_the_start_is_warm_up() -> None:
    values = [50.0] * 40 + [100.0] * 60
    assert slope_of(REQUESTS, values, 50_000).growth == pytest.approx(0.0)


def test_noise_too_large_to_tell_is_not_called_certain() -> None:
    slope = slope_of(REQUESTS, series(0.0, noise=30.0), 50_000)
    assert slope.is_flat and not slope.is_certain


def test_too_few_samples_have_no_slope() -> None:
    with pytest.raises(ValueError, match="too few"):
        slope_of(REQUESTS[:12], series(0.0)[:12], 50_000)


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


def moments(leak: float) -> list[Moment]:
    return [
        Moment(request, request / 40, {"compute": Sample(value, value, 9, 5)}, 10.0 + 5 * (number % 4), 20.0)
        for number, (request, value) in enumerate(zip(REQUESTS, series(leak), strict=True))
    ]


def test_a_leak_is_said_and_what_is_flat_as_well(tmp_path: Path) -> None:
    assert figures_of(moments(0.0), [])["flat"]
    figures = figures_of(moments(20.0), [])
    assert not figures["flat"]
    verdicts = {row["series"]: row["verdict"] for row in figures["rows"]}
    assert verdicts["private_mib"] == "grows" and verdicts["descriptors"] == "flat"
    assert all(verdict != "grows" for name, verdict in verdicts.items() if "ms" in name), "ways differ, none grows"
    draw_soak(moments(0.0), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_run_samples_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["soak", "--requests", "800", "--window", "50", "--batch", "16", "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):  # flat or not: so few requests are all warm-up
        soak.main()
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["requests"] == 800 and figures["left"] == []
    assert {row["process"] for row in figures["rows"]} == {
        "supervisor", "http", "compute", "loader", "predictor", "scheduler", "requests",
    }  # fmt: skip
