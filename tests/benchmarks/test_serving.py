"""Measurements of serving: one form for all, rounds that end in time, and each of them for a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from expertflow.benchmarks.models import EXAMPLES
from expertflow.benchmarks.serving import budget as budgets
from expertflow.benchmarks.serving import ordering
from expertflow.benchmarks.serving.__main__ import MEASUREMENTS, main, make_parser
from expertflow.benchmarks.serving.budget import Budget
from expertflow.benchmarks.serving.quartiles import quartiles

ROUND_S = 10.0


def test_rounds_end_before_one_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(budgets.time, "monotonic", lambda: now_s[0])
    done = []
    for number in Budget(1.0).rounds(100):
        done.append(number)
        now_s[0] += ROUND_S if number else 2 * ROUND_S
    assert done == [0, 1, 2, 3] and now_s[0] == 5 * ROUND_S  # 10 s are left, the longest took 20


def test_the_least_rounds_come_though_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(budgets.time, "monotonic", lambda: now_s[0])
    done = []
    for number in Budget(0.0).rounds(10, least=3):
        done.append(number)
        now_s[0] += ROUND_S
    assert done == [0, 1, 2] and list(Budget(1e6).rounds(2)) == [0, 1]


def test_quartiles_are_those_of_the_values() -> None:
    assert quartiles([3.0, 1.0, 2.0, 5.0, 4.0]) == (3.0, 2.0, 4.0)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_measurement_has_minutes_and_a_file(name: str) -> None:
    arguments = make_parser().parse_args([name, "--minutes", "3", "--out", "x.json"])
    assert arguments.minutes == 3 and arguments.out == Path("x.json")
    assert 0 < make_parser().parse_args([name]).minutes <= 20


@pytest.mark.parametrize(
    "words",
    [
        ["http", "--batch", "2", "--tokens", "3", "--rounds", "1", "--singles", "2"],
        ["streams", "--streams", "4", "--tokens", "3", "--batch", "2"],
        pytest.param(["prefix", "--prefix", "40", "--own", "4", "--prompts", "1"], marks=pytest.mark.slow),
        pytest.param(["lines", "--lines", "12", "--batch", "4"], marks=pytest.mark.slow),
        pytest.param(["watching", "--rows", "2", "--tokens", "16", "--rounds", "2"], marks=pytest.mark.slow),
        ["options", "--batches", "2", "--tokens", "3", "--prompt", "4", "--rounds", "1"],
    ],
    ids=lambda words: words[0],
)
def test_a_measurement_of_the_built_in_model_gives_its_figures(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "figures.json"
    model = [] if words[0] == "lines" else ["--model", "built-in", "--kv-memory", "64MiB"]
    monkeypatch.setattr("sys.argv", ["serving", *words, *model, "--out", str(file)])
    main()
    figures = json.loads(file.read_text())
    assert figures["cpu"] and (figures.get("rows") or figures.get("whole") == 4 or figures["ratio"]["median"] > 0)


@pytest.mark.slow
def test_orders_are_compared_in_pairs_on_as_many_lines_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "widened", lambda: EXAMPLES / "model")
    words = ["ordering", "--lines", "12", "--tokens", "2", "--batches", "2", "--rounds", "2"]
    figures = ordering.run(make_parser().parse_args(words), Budget(0.0))
    rows: Any = figures["rows"]
    assert [row["order"] for row in rows] == [ordering.ARRIVAL, ordering.FORECAST]
    assert all(row["pairs"] == 2 and row["lines"] == 8 for row in rows), "the least of both: there was no time"
    assert rows[0]["to arrival"] == "1.000 (1.000 to 1.000)"
