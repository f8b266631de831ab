"""The token table learns what each token uses, forgets within its memory, and knows its probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from expertflow.tests.predictor.routes import coming, same_everywhere, used_of
from expertflow.workers.predictor.base.token_table import TokenTable

LAYERS, EXPERTS, TOP_K = 3, 8, 2


def table_of(**options: float) -> TokenTable:
    return TokenTable(LAYERS, EXPERTS, TOP_K, **options)  # type: ignore[arg-type]


def learn_trace(table: TokenTable, token: int, experts: list[int], times: int = 1) -> None:
    for step in range(times):
        table.learn(used_of(step, [token], same_everywhere(LAYERS, experts)))


def test_before_anything_is_known_all_experts_are_equally_likely() -> None:
    forecast = table_of().forecast(coming(0, [7]))
    assert forecast.dtype == np.float32
    assert forecast.shape == (LAYERS, EXPERTS)
    assert np.allclose(forecast, TOP_K / EXPERTS)


def test_a_token_is_expected_to_use_what_it_used() -> None:
    table = table_of()
    learn_trace(table, 7, [1, 5], times=9)
    learn_trace(table, 8, [2, 3], times=9)
    forecast = table.forecast(coming(0, [7]))[0]
    assert set(np.flatnonzero(forecast > 0.5)) == {1, 5}
    assert forecast[[1, 5]].min() > 0.9
    assert forecast[[2, 3]].max() < 0.1


def test_an_unknown_token_is_expected_to_use_what_is_popular() -> None:
    table = table_of()
    learn_trace(table, 7, [1, 5], times=30)
    forecast = table.forecast(coming(0, [99]))[0]
    assert forecast[1] > 0.9 > 0.1 > forecast[2]


def test_a_step_uses_what_any_of_its_tokens_uses() -> None:
    """1 − Π (1 − p): the union of all tokens, repeated ones counted as often as they come."""
    table = table_of()
    learn_trace(table, 7, [0, 1], times=4)
    learn_trace(table, 8, [2, 3], times=4)
    one, other = table.forecast(coming(0, [7])), table.forecast(coming(0, [8]))
    both = table.forecast(coming(0, [8, 7, 8]))
    assert np.allclose(both, 1 - (1 - one) * (1 - other) ** 2, atol=1e-5)


def test_an_empty_step_uses_nothing() -> None:
    assert not table_of().forecast(coming(0, [])).any()


def test_learning_at_once_or_one_by_one_is_the_same() -> None:
    """A prefill of thousands of tokens goes through chunks; none may be lost or counted twice."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 700, 2048).tolist()
    routing = rng.integers(0, EXPERTS, (2048, LAYERS, 1))
    at_once, one_by_one = TokenTable(LAYERS, EXPERTS, 1), TokenTable(LAYERS, EXPERTS, 1)
    at_once.learn(used_of(0, tokens, routing))
    for index, token in enumerate(tokens):
        one_by_one.learn(used_of(index, [token], routing[index : index + 1]))
    asked = coming(0, list(range(0, 700, 7)))
    assert np.allclose(at_once.forecast(asked), one_by_one.forecast(asked), atol=1e-6)


def test_the_token_not_seen_for_longest_makes_room() -> None:
    table = table_of(memory_bytes=2 * (LAYERS * EXPERTS + 1))
    for token, experts in ((1, [0, 1]), (2, [2, 3]), (1, [0, 1]), (3, [4, 5])):
        learn_trace(table, token, experts)
    popular = table.forecast(coming(0, [99]))
    assert np.allclose(table.forecast(coming(0, [2])), popular)
    assert not np.allclose(table.forecast(coming(0, [1])), popular)
    assert not np.allclose(table.forecast(coming(0, [3])), popular)


def test_more_distinct_tokens_than_the_table_holds_are_no_error() -> None:
    table = table_of(memory_bytes=1)
    table.learn(used_of(0, [1, 2, 3], np.repeat(same_everywhere(LAYERS, [6, 7]), 3, axis=0)))
    assert table.forecast(coming(0, [3]))[0, 6] > 0.5


def test_counts_never_overflow_and_the_recent_counts_more() -> None:
    """Counts are bytes: the 256th sighting must not wrap around, and a change of habit must get through."""
    table = table_of()
    learn_trace(table, 7, [0, 1], times=1000)
    assert table.forecast(coming(0, [7]))[0, 0] > 0.95
    table.learn(used_of(0, [7] * 600, np.repeat(same_everywhere(LAYERS, [4, 5]), 600, axis=0)))
    forecast = table.forecast(coming(0, [7]))[0]
    assert forecast[4] > 0.6 > 0.4 > forecast[0]


@pytest.mark.parametrize("routing", [np.full((1, LAYERS, TOP_K), EXPERTS), np.zeros((1, LAYERS + 1, TOP_K))])
def test_malformed_routing_teaches_nothing(routing: np.ndarray) -> None:
    table = table_of()
    table.learn(used_of(0, [7], routing))
    assert np.allclose(table.forecast(coming(0, [7])), TOP_K / EXPERTS)
