"""What policies think an expert is worth keeping."""

from __future__ import annotations

import numpy as np
import pytest
from expertflow.workers.loader.policy import Lru, Policy, Popularity

LAYERS, EXPERTS = 4, 3


def key(layer: int, expert: int) -> int:
    return layer * EXPERTS + expert


def keys(*places: tuple[int, int]) -> np.ndarray:
    return np.array([key(*place) for place in places])


def test_lru_values_what_was_used_last() -> None:
    policy = Lru(LAYERS, EXPERTS)
    policy.used(keys((0, 0), (2, 0)), step=1)
    policy.touched(keys((1, 1)), step=2)
    worth = policy.worth(now=9, after=9).ravel()
    order = [key(1, 1), key(2, 0), key(0, 0)]
    assert sorted(order, key=lambda each: -worth[each]) == order
    assert all(worth[each] < worth[key(0, 0)] for each in range(LAYERS * EXPERTS) if each not in order)


def test_popularity_values_what_is_used_often() -> None:
    policy = Popularity(LAYERS, EXPERTS, top_k=1)
    for step in range(8):
        policy.used(keys((1, 0), *([(1, 1)] if step % 4 == 0 else [])), step)
    worth = policy.worth(now=31, after=31)[1]
    assert worth[0] > worth[1] > worth[2]


def test_popularity_values_the_layer_that_comes_next() -> None:
    """The model walks in a circle: after layer 1 of a step, layer 2 comes next and layer 1 last."""
    worth = Popularity(LAYERS, EXPERTS, top_k=1).worth(now=5, after=5)[:, 0]
    assert list(np.argsort(-worth)) == [2, 3, 0, 1]


@pytest.mark.parametrize("policy", [Lru(LAYERS, EXPERTS), Popularity(LAYERS, EXPERTS, 1)], ids=["lru", "popularity"])
def test_worth_is_a_number_between_0_and_1_at_any_time(policy: Policy) -> None:
    """Division by a worth must be safe, in the far past and future too."""
    policy.used(keys((0, 0), (3, 2)), step=1 << 30)
    for now in (-1, 0, 1 << 32, 1 << 42):
        worth = policy.worth(now, now + 3)
        assert worth.shape == (LAYERS, EXPERTS)
        assert np.all((worth > 0) & (worth <= 1))
