"""Who runs, on which tokens, and what is said of those who do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from expertflow.benchmarks.comparison import compare
from expertflow.benchmarks.comparison.cases import COLD, WARM, text_cases
from expertflow.benchmarks.comparison.compare import NO_LIMIT, TIME_IS_OVER, Comparison, Setting
from expertflow.benchmarks.contender.kind import Contender
from expertflow.benchmarks.contender.order import Answer, Answered, Case, Order
from expertflow.benchmarks.contender.running import Run
from expertflow.benchmarks.enforced.memory_group import NoLimit

MODEL = Path(__file__).parents[2] / "examples" / "model"


class Drawing(Contender):
    name, draws = "drawing", True


class Forced(Contender):
    name = "forced"


def setting(minutes: float) -> Setting:
    return Setting(Path(), [Case(prompts=[[1]] * rows) for rows in (1, 8)], 1.0, 1.0, minutes)


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[Order]:
    """What contenders were told; each draws a token a row."""
    told: list[Order] = []

    def run(contender: Contender, order: Order, timeout_s: float) -> Run:
        told.append(order)
        tokens = [[[len(told)]] * len(case.prompts) for case in order.cases]
        return Run(Answer(ready_s=1.0, cases=[Answered(first_s=1.0, steps_s=[1.0], tokens=each) for each in tokens]))

    monkeypatch.setattr(compare, "run", run)
    return told


def test_the_first_who_draws_draws_for_all(orders: list[Order]) -> None:
    comparison = Comparison(setting(1.0), lambda said: None)
    for contender in (Forced(), Drawing(), Drawing(), Forced()):
        comparison.run(contender)
    assert comparison.cells["forced", 0, 1, ""].failure == "no tokens to force: nobody drew any"
    assert [case.tokens for case in orders[-1].cases] == [[[1]], [[1]] * 8]


def test_one_batch_size_alone(orders: list[Order]) -> None:
    comparison = Comparison(setting(1.0), lambda said: None)
    comparison.run(Drawing(), batch=8)
    comparison.run(Forced(), batch=8)
    assert [len(order.cases) for order in orders] == [1, 1]
    assert list(comparison.cells) == [("drawing", 0, 8, ""), ("forced", 0, 8, "")]


def test_when_time_is_over_nobody_runs_and_a_line_says_so(orders: list[Order]) -> None:
    earlier = Comparison(setting(1.0), lambda said: None)
    earlier.run(Drawing())
    late = Comparison(setting(-1.0), lambda said: None)
    late.resume(list(earlier.cells.values()))
    late.run(Drawing())
    late.run(Forced())
    assert [cell.failure for cell in late.cells.values()] == ["", "", TIME_IS_OVER, TIME_IS_OVER]
    assert len(orders) == 1


def test_a_limit_that_cannot_be_made_is_a_line_and_the_others_run(
    orders: list[Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = compare.run

    def run(contender: Contender, order: Order, timeout_s: float) -> Run:
        if order.limit_bytes:
            raise NoLimit("no controller")
        return unlimited(contender, order, timeout_s)

    monkeypatch.setattr(compare, "run", run)
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
