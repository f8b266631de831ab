"""Which expert each policy would keep, and which it would let go."""

from __future__ import annotations

import numpy as np
import pytest
from expertflow.errors import UsageError
from expertflow.workers.loader.policies import Policy, make_policy
from expertflow.workers.loader.policies.static import Static

LAYERS, EXPERTS = 4, 3


def policy_of(name: str) -> Policy:
    return make_policy(name, LAYERS, EXPERTS, 1)


def key(layer: int, expert: int) -> int:
    return layer * EXPERTS + expert


def keys(*places: tuple[int, int]) -> np.ndarray:
    return np.array([key(*place) for place in places])


def leaving(policy: Policy, now: int, *places: tuple[int, int]) -> list[tuple[int, int]]:
    """The places in the order in which they go."""
    worth = policy.worth(now, now)
    return sorted(places, key=lambda place: worth[place])


def test_lru_lets_go_what_was_not_used_for_longest() -> None:
    policy = policy_of("lru")
    policy.used(keys((0, 0), (2, 0)), step=1)
    policy.touched(keys((1, 1)), step=2)
    order = leaving(policy, 9, (1, 1), (2, 0), (0, 0), (3, 0))
    assert order == [(3, 0), (0, 0), (2, 0), (1, 1)]


def test_popularity_values_what_is_used_often() -> None:
    policy = policy_of("popularity")
    for step in range(8):
        policy.used(keys((1, 0), *([(1, 1)] if step % 4 == 0 else [])), step)
    assert leaving(policy, 31, (1, 0), (1, 1), (1, 2)) == [(1, 2), (1, 1), (1, 0)]


def test_popularity_values_the_layer_that_comes_next() -> None:
    """The model walks in a circle: after layer 1 of a step, layer 2 comes next and layer 1 last."""
    order = leaving(policy_of("popularity"), 5, *((layer, 0) for layer in range(LAYERS)))
    assert order == [(1, 0), (0, 0), (3, 0), (2, 0)]


def test_lfu_counts_a_use_once_and_remembers_for_ever() -> None:
    policy = policy_of("lfu")
    for step in range(3):
        policy.touched(keys((0, 1)), step)
        policy.used(keys((0, 1)), step)
    for step in range(3, 5):
        policy.used(keys((0, 0), (0, 2)), step)
    policy.touched(keys((0, 2)), 5)
    policy.touched(keys((0, 2)), 5)  # asked again: a new loader hears the open need once more
    worth = policy.worth(20, 20)[0]
    assert worth[0] < worth[1] == worth[2]


def test_lfru_weighs_frequency_against_age() -> None:
    """40 uses and then 4 rounds without: 40 / 17; a single use just now: 1; 3 uses, the last one round ago: 3 / 5."""
    policy = policy_of("lfru")
    for step in range(40):
        policy.used(keys((0, 0), *([(0, 1)] if step < 2 else [])), step)
    policy.used(keys((0, 1)), 42)
    policy.used(keys((0, 2)), 43)
    assert leaving(policy, 43 * LAYERS, (0, 0), (0, 1), (0, 2)) == [(0, 1), (0, 2), (0, 0)]
    assert leaving(policy, 60 * LAYERS, (0, 0), (0, 1), (0, 2)) == [(0, 2), (0, 1), (0, 0)]


def test_least_stale_lets_earlier_passes_go_by_layer() -> None:
    """LRU would let (3, 0), unused for two passes, go before (0, 0)."""
    policy = policy_of("least-stale")
    policy.used(keys((3, 0)), step=0)
    policy.used(keys((0, 0), (2, 0)), step=1)
    policy.touched(keys((0, 1)), step=2)
    policy.touched(keys((1, 1)), step=2)
    order = leaving(policy, 2 * LAYERS + 1, (1, 1), (3, 0), (0, 1), (2, 0), (0, 0))
    assert order == [(0, 0), (2, 0), (3, 0), (0, 1), (1, 1)]


def test_static_keeps_what_was_hot_while_it_learnt() -> None:
    policy = Static(LAYERS, EXPERTS, 1, warm_up=4)
    for step in range(4):
        policy.touched(keys((0, 0)), step)
        policy.touched(keys((1, step % 2)), step)  # the last step of the warm-up counts with all of its layers
    for step in range(4, 50):
        policy.used(keys((0, 1), (1, 2)), step)
    assert leaving(policy, 200, (0, 0), (0, 1), (1, 0), (1, 1), (1, 2))[-3:] == [(1, 0), (1, 1), (0, 0)]


def test_ring_lets_go_the_layer_that_was_just_passed() -> None:
    policy = policy_of("ring")
    policy.used(keys((1, 0)), step=1)
    policy.touched(keys((0, 0)), step=2)
    policy.touched(keys((1, 1)), step=2)
    now = 2 * LAYERS + 1
    assert leaving(policy, now, (2, 0), (3, 1), (0, 0), (1, 0), (1, 1)) == [(1, 0), (1, 1), (0, 0), (3, 1), (2, 0)]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no policy 'lruu'.*popularity, lru"):
        make_policy("lruu", LAYERS, EXPERTS, 1)
