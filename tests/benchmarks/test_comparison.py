"""Who runs, on which tokens, and what is said of those who do not."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from expertflow.benchmarks.comparison import runs
from expertflow.benchmarks.comparison.kernels import BACKENDS, kernel_rows, run_kernels
from expertflow.benchmarks.comparison.layouts import layout_rows, run_layouts
from expertflow.benchmarks.comparison.rows import rate
from expertflow.benchmarks.comparison.runs import (
    COLD,
    NO_LIMIT,
    TIME_IS_OVER,
    WARM,
    Comparison,
    Setting,
    prefill_cases,
    text_cases,
)
from expertflow.benchmarks.comparison.under_limit import run_under_limit, under_limit_rows
from expertflow.benchmarks.contenders.base import Case, CaseResult, Contender, Task, TaskResult
from expertflow.benchmarks.contenders.resident import Resident
from expertflow.benchmarks.contenders.running import Run
from expertflow.benchmarks.limits import NoLimit

MODEL = Path(__file__).parents[2] / "examples" / "model"


class Drawing(Contender):
    name, draws = "drawing", True


class Forced(Contender):
    name = "forced"


def setting(minutes: float) -> Setting:
    return Setting(Path(), [Case(prompts=[[1]] * rows) for rows in (1, 8)], 1.0, 1.0, minutes)


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """What contenders were told; each draws a token a row."""
    told: list[Task] = []

    def run(contender: Contender, task: Task, timeout_s: float) -> Run:
        told.append(task)
        tokens = [[[len(told)]] * len(case.prompts) for case in task.cases]
        results = [CaseResult(first_s=1.0, steps_s=[1.0], tokens=each) for each in tokens]
        return Run(TaskResult(ready_s=1.0, cases=results))

    monkeypatch.setattr(runs, "run", run)
    return told


def test_the_first_who_draws_draws_for_all(tasks: list[Task]) -> None:
    comparison = Comparison(setting(1.0), lambda said: None)
    for contender in (Forced(), Drawing(), Drawing(), Forced()):
        comparison.run(contender)
    assert comparison.cells["forced", 0, 1, ""].failure == "no tokens to force: nobody drew any"
    assert [case.tokens for case in tasks[-1].cases] == [[[1]], [[1]] * 8]


def test_one_batch_size_alone(tasks: list[Task]) -> None:
    comparison = Comparison(setting(1.0), lambda said: None)
    comparison.run(Drawing(), batch=8)
    comparison.run(Forced(), batch=8)
    assert [len(task.cases) for task in tasks] == [1, 1]
    assert list(comparison.cells) == [("drawing", 0, 8, ""), ("forced", 0, 8, "")]


def test_prefills_need_no_tokens_and_a_step_of_theirs_has_all_tokens(tasks: list[Task]) -> None:
    cases = prefill_cases(MODEL, ["2x3"], times=4)
    assert [len(prompt) for prompt in cases[0].prompts] == [3, 3]
    comparison = Comparison(Setting(MODEL, cases, 1.0, 1.0, 1.0), lambda said: None)
    comparison.run(Forced())
    (cell,) = comparison.cells.values()
    assert (cell.failure, cell.state, cell.step_tokens, rate(cell).estimate) == ("", "prefill 2 x 3", 6, 6.0)


def test_ours_and_the_commit_take_turns_in_being_first(tasks: list[Task]) -> None:
    said: list[str] = []
    comparison = Comparison(setting(1.0), lambda line: said.append(line.split(",")[0]))
    arguments = argparse.Namespace(repeats=2, against="abc", isa="avx2", beside=["commit", "transformers"])
    run_kernels(comparison, arguments)
    ours, commit = "ExpertFlow 100%", "commit abc 100%"
    assert [name for name in said if name in (ours, commit)] == [ours, commit, commit, ours]
    assert len(said) == 8
    rows = {(row["contender"], row["batch"]): row for row in kernel_rows(comparison.cells)}
    assert rows[commit, 8]["speedup"]["estimate"] == 1.0
    assert rows[commit, 8]["identical"] == 0.0
    assert "speedup" not in rows[ours, 8]


def test_ours_is_compared_with_the_library_alone(tasks: list[Task]) -> None:
    comparison = Comparison(setting(1.0), lambda line: None)
    run_kernels(comparison, argparse.Namespace(repeats=1, isa="avx2", beside=["transformers"]))
    names = {name for name, *_ in comparison.cells}
    assert names == {"ExpertFlow 100%", *(Resident(backend).name for backend in BACKENDS)}


def test_when_time_is_over_nobody_runs_and_a_line_says_so(tasks: list[Task]) -> None:
    earlier = Comparison(setting(1.0), lambda said: None)
    earlier.run(Drawing())
    late = Comparison(setting(-1.0), lambda said: None)
    late.resume(list(earlier.cells.values()))
    late.run(Drawing())
    late.run(Forced())
    assert [cell.failure for cell in late.cells.values()] == ["", "", TIME_IS_OVER, TIME_IS_OVER]
    assert len(tasks) == 1


def test_a_limit_that_cannot_be_made_is_a_line_and_the_others_run(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = runs.run

    def run(contender: Contender, task: Task, timeout_s: float) -> Run:
        if task.limit_bytes:
            raise NoLimit("no controller")
        return unlimited(contender, task, timeout_s)

    monkeypatch.setattr(runs, "run", run)
    comparison = Comparison(setting(1.0), lambda said: None)
    comparison.run(Drawing(), limit_bytes=10**9)
    comparison.run(Drawing())
    failures = [cell.failure for cell in comparison.cells.values()]
    assert failures == [f"{NO_LIMIT}: no controller"] * 2 + ["", ""]


def test_cold_and_warm_cases_are_of_other_text_and_one_length() -> None:
    cold, warm = text_cases(MODEL, [2], cold_steps=3, warm_steps=5)
    assert [(case.state, case.steps, case.trial) for case in (cold, warm)] == [(COLD, 3, False), (WARM, 5, False)]
    prompts = [*cold.prompts, *warm.prompts]
    assert {len(prompt) for prompt in prompts} == {32}
    assert len({tuple(prompt) for prompt in prompts}) == 4


def test_under_a_limit_all_are_compared_with_ours_in_few_bits_where_that_runs(tasks: list[Task]) -> None:
    for bits, ours in ((None, "ExpertFlow"), (4, "ExpertFlow 4 bits")):
        comparison = Comparison(setting(1.0), lambda line: None)
        run_under_limit(comparison, argparse.Namespace(bits=bits, repeats=1, limits=["1GB"]))
        rows = {row["contender"]: row for row in under_limit_rows(comparison.cells) if row["limit_bytes"]}
        assert {name for name, row in rows.items() if "speedup" not in row} == {ours}
        assert set(rows) == {ours, "ExpertFlow", "llama.cpp mmap", "accelerate disk offload"}


def test_layouts_take_turns_in_being_first(tasks: list[Task]) -> None:
    said: list[str] = []
    comparison = Comparison(setting(1.0), lambda line: said.append(line.rpartition(", no limit")[0]))
    run_layouts(comparison, argparse.Namespace(repeats=3, share="33%", against="abc"))
    first = "ExpertFlow 4 bits 33%"
    assert said[:3] == [first, f"{first}, by name", "commit abc 33%, by name"]
    assert sorted(said[::3]) == sorted(said[:3])
    rows = layout_rows(comparison.cells)
    assert [row["contender"] for row in rows if "speedup" not in row] == [first, first]
