"""Figures of predictions, on examples that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from expertflow.tests.predictor.paths import LAYERS, made_up_trace
from expertflow.workers.predictor.base.token_table import TokenTable
from expertflow.workers.predictor.baselines import Previous
from expertflow.workers.predictor.judging.figures import judge
from expertflow.workers.predictor.judging.replay import JudgedStep, decode, learn_trace, prefill


def step(forecast: list[list[float]], routes: list[list[int]]) -> JudgedStep:
    """Tokens at one layer of four experts."""
    return JudgedStep(np.array(forecast, np.float32)[:, None], np.array(routes)[:, None])


def test_recall_counts_the_most_likely_experts() -> None:
    figures = judge([step([[0.9, 0.4, 0.3, 0.1], [0.1, 0.2, 0.3, 0.4]], [[0, 2], [2, 3]])])
    assert figures.tokens == 2
    assert figures.recall == pytest.approx(3 / 4)
    assert figures.recall_double == 1
    assert figures.recall_by_layer == [pytest.approx(3 / 4)]


def test_precision_and_coverage_count_what_is_more_likely_than_not() -> None:
    figures = judge([step([[0.9, 0.6, 0.3, 0.1], [0.1, 0.2, 0.3, 0.4]], [[0, 2], [2, 3]])])
    assert figures.precision == pytest.approx(1 / 2)
    assert figures.coverage == pytest.approx(1 / 4)


def test_calibration_compares_chances_with_what_came() -> None:
    certain = judge([step([[1, 1, 0, 0]], [[0, 1]])])
    assert certain.calibration_error == pytest.approx(0)
    boastful = judge([step([[0.99, 0.99, 0, 0]] * 2, [[0, 1], [2, 3]])])
    assert boastful.calibration_error == pytest.approx((4 * 0.49 + 4 * 0.5) / 8, abs=0.01)


def test_batches_are_judged_by_their_unions() -> None:
    """Two tokens use {0,1} and {1,2}; forecast are {0,1} and {0,3}: two of three found, three forecast."""
    figures = judge([step([[0.9, 0.8, 0.1, 0], [0.9, 0.1, 0, 0.8]], [[0, 1], [1, 2]])], batch_sizes=(1, 2))
    single, pair = figures.batches
    assert (single.tokens, pair.tokens) == (1, 2)
    assert single.accuracy == pytest.approx(2 / 4) and single.size_ratio == 1
    assert pair.accuracy == pytest.approx(2 / 3) and pair.size_ratio == pytest.approx(3 / 3)
    assert pair.accuracy_double == 1 and pair.size_ratio_double == pytest.approx(4 / 3)


def test_batches_that_never_were_have_no_accuracy() -> None:
    """It was told as 0, though nothing was forecast wrong."""
    lone = step([[0.9, 0.8, 0.1, 0]], [[0, 1]])
    single, pair = judge([lone, lone, lone], batch_sizes=(1, 2)).batches
    assert single.accuracy == 1
    assert (pair.accuracy, pair.size_ratio, pair.accuracy_double, pair.size_ratio_double) == (None,) * 4


@pytest.mark.parametrize("prompt", [0.0, 0.5])
def test_decode_runs_every_token_once_and_in_order(prompt: float) -> None:
    trace = made_up_trace(sequences=5)
    length = int(trace.offsets[1])
    steps = list(decode(Previous(LAYERS, trace.expert_count, trace.top_k), trace, rows=2, prompt=prompt))
    judged = np.concatenate([each.routes for each in steps])
    skipped = round(prompt * length)
    assert len(judged) == 5 * (length - skipped)
    expected = np.concatenate([trace.routes[start + skipped : start + length] for start in trace.offsets[:-1]])
    assert sorted(map(str, judged.tolist())) == sorted(map(str, expected.tolist()))
    known = [each.forecast[token].max() == 1 for each in steps for token in range(len(each.routes))]
    assert sum(known) == 5 * (length - max(skipped, 1)), "all but first tokens have a previous one"


def test_prefill_knows_no_routing() -> None:
    trace = made_up_trace(sequences=3)
    steps = list(prefill(Previous(LAYERS, trace.expert_count, trace.top_k), trace))
    assert [len(each.routes) for each in steps] == np.diff(trace.offsets).tolist()
    assert not any((each.forecast == 1).any() for each in steps)


def test_a_taught_table_knows_the_trace() -> None:
    trace = made_up_trace()
    table = TokenTable(LAYERS, trace.expert_count, trace.top_k)
    untaught = judge(decode(table, trace, learning=False)).recall
    learn_trace(table, trace)
    assert judge(decode(table, trace, learning=False)).recall > untaught + 0.2
