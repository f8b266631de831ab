"""The predictors that others are compared with: previous token, activation matrices, everything."""

from __future__ import annotations

import numpy as np
from expertflow.tests.predictor.routes import coming, same_everywhere, used_of
from expertflow.workers.predictor.base.forecaster import CHUNK_TOKENS
from expertflow.workers.predictor.baselines import REMEMBERED_ROWS, ActivationMatrixForecaster, Everything, Previous

LAYERS, EXPERTS, TOP_K = 3, 8, 2


def routed(*experts: list[int]) -> np.ndarray:
    """One token for each list: [tokens, layers, top_k]."""
    return np.concatenate([same_everywhere(LAYERS, each) for each in experts])


def test_everything_is_certain_of_all_experts() -> None:
    forecaster = Everything(LAYERS, EXPERTS)
    assert (forecaster.forecast(coming(0, [1, 2])) == 1).all()
    assert (forecaster.forecast_tokens(coming(0, [1, 2])) == 1).all()


def test_previous_repeats_what_each_row_did_last() -> None:
    forecaster = Previous(LAYERS, EXPERTS, TOP_K)
    forecaster.learn(used_of(4, [7, 8], routed([0, 1], [2, 3])))
    forecast = forecaster.forecast_tokens(coming(5, [9, 9]))
    assert [np.flatnonzero(row[1]).tolist() for row in forecast] == [[0, 1], [2, 3]]
    assert np.flatnonzero(forecaster.forecast(coming(5, [9, 9]))[0]).tolist() == [0, 1, 2, 3]


def test_previous_knows_nothing_after_a_gap_or_of_a_new_row() -> None:
    forecaster = Previous(LAYERS, EXPERTS, TOP_K)
    forecaster.learn(used_of(4, [7], routed([0, 1])))
    assert np.allclose(forecaster.forecast_tokens(coming(6, [9])), TOP_K / EXPERTS)
    assert np.allclose(forecaster.forecast_tokens(coming(5, [9], rows=[1])), TOP_K / EXPERTS)


def test_previous_forgets_the_row_not_seen_for_longest() -> None:
    forecaster = Previous(LAYERS, EXPERTS, TOP_K)
    for row in range(REMEMBERED_ROWS + 1):
        forecaster.learn(used_of(0, [7], routed([0, 1]), rows=[row]))
    assert np.allclose(forecaster.forecast_tokens(coming(1, [9], rows=[0])), TOP_K / EXPERTS)
    assert (forecaster.forecast_tokens(coming(1, [9], rows=[1])) == 1).any()


def test_matrices_follow_the_most_similar_request() -> None:
    forecaster = ActivationMatrixForecaster(LAYERS, EXPERTS, TOP_K)
    for step in range(5):
        forecaster.learn(used_of(step, [1, 1], routed([0, step % 2 + 1], [5, step % 2 + 6])))
    forecaster.learn(used_of(0, [1], routed([0, 1]), rows=[2]))
    forecast = forecaster.forecast_tokens(coming(1, [1], rows=[2]))[0]
    assert np.allclose(forecast[:, 0], 1)
    assert forecast[0, 1] > 0.5 and forecast[0, 2] > 0.3
    assert (forecast[:, 5:] == 0).all()
    assert np.allclose(forecast.sum(axis=1), TOP_K)


def test_matrices_of_a_new_request_are_the_average() -> None:
    forecaster = ActivationMatrixForecaster(LAYERS, EXPERTS, TOP_K)
    assert np.allclose(forecaster.forecast_tokens(coming(0, [1])), TOP_K / EXPERTS)
    forecaster.learn(used_of(0, [1, 1], routed([0, 1], [0, 2])))
    assert np.allclose(forecaster.forecast_tokens(coming(0, [1], rows=[9]))[0, 0, :3], [1, 0.5, 0.5])


def test_matrices_keep_a_bounded_number_of_requests() -> None:
    forecaster = ActivationMatrixForecaster(LAYERS, EXPERTS, TOP_K, requests=2)
    forecaster.learn(used_of(0, [1], routed([0, 1]), rows=[0]))
    forecaster.learn(used_of(0, [1], routed([2, 3]), rows=[1]))
    forecaster.learn(used_of(0, [1], routed([4, 5]), rows=[2]))
    assert (forecaster.forecast_tokens(coming(0, [1], rows=[9]))[0, :, :2] == 0).all()


def test_a_long_prompt_is_forecast_in_parts_of_bounded_size() -> None:
    tokens = 2 * CHUNK_TOKENS + 3
    for forecaster in (
        Everything(LAYERS, EXPERTS),
        ActivationMatrixForecaster(LAYERS, EXPERTS, TOP_K),
        Previous(LAYERS, EXPERTS, TOP_K),
    ):
        parts = list(forecaster.parts(coming(0, [1] * tokens, rows=[0] * tokens)))
        assert max(len(places) for places, _ in parts) <= CHUNK_TOKENS
        assert np.concatenate([places for places, _ in parts]).tolist() == list(range(tokens))


def test_malformed_routing_teaches_nothing() -> None:
    for forecaster in (ActivationMatrixForecaster(LAYERS, EXPERTS, TOP_K), Previous(LAYERS, EXPERTS, TOP_K)):
        forecaster.learn(used_of(0, [1], routed([0, EXPERTS])))
        assert np.allclose(forecaster.forecast_tokens(coming(1, [1])), TOP_K / EXPERTS)
