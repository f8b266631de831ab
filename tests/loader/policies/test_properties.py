"""What holds for every policy, whatever it is told."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from expertflow.configs.schema import Policy as PolicyName
from expertflow.workers.loader.policies import POLICIES, Policy, make_policy
from hypothesis import given, settings
from hypothesis import strategies as st

LAYERS, EXPERTS, TOP_K = 3, 5, 2
EVERY = pytest.mark.parametrize("name", POLICIES)

masks = st.lists(st.booleans(), min_size=EXPERTS, max_size=EXPERTS)
steps_used = st.lists(st.lists(masks, min_size=LAYERS, max_size=LAYERS), min_size=1, max_size=12)
"""[steps, layers, experts]: used or not."""


def keys_of(layers: list[list[bool]], layer: int) -> np.ndarray:
    return np.flatnonzero(layers[layer]) + layer * EXPERTS


def all_keys(layers: list[list[bool]]) -> np.ndarray:
    return np.flatnonzero(np.array(layers))


def run(policy: Policy, history: list[list[list[bool]]]) -> None:
    for step, layers in enumerate(history):
        for layer in range(LAYERS):
            policy.touched(keys_of(layers, layer), step)
        policy.used(all_keys(layers), step)


def test_the_configuration_names_every_policy() -> None:
    assert list(get_args(PolicyName)) == list(POLICIES)


@EVERY
@settings(max_examples=30, deadline=None)
@given(steps_used, st.integers(-1, 1 << 45), st.integers(0, 40))
def test_worth_is_a_number_between_0_and_1(name: str, history: list[list[list[bool]]], now: int, ahead: int) -> None:
    """At any time, in the far future too, and before anything was heard."""
    policy = make_policy(name, LAYERS, EXPERTS, TOP_K)
    for _ in range(2):
        worth = policy.worth(now, now + ahead)
        assert worth.shape == (LAYERS, EXPERTS) and worth.dtype == np.float64
        assert np.all((worth > 0) & (worth <= 1))
        run(policy, history)


@EVERY
@settings(max_examples=30, deadline=None)
@given(steps_used)
def test_reports_of_the_same_uses_count_once(name: str, history: list[list[list[bool]]]) -> None:
    """Whether an expert was reported during its step, or at its end, or twice makes no difference afterwards."""
    told_twice, told_at_the_end = (make_policy(name, LAYERS, EXPERTS, TOP_K) for _ in range(2))
    run(told_twice, history)
    for step, layers in enumerate(history):
        told_at_the_end.used(all_keys(layers), step)
    now = len(history) * LAYERS - 1
    np.testing.assert_array_equal(told_twice.worth(now, now), told_at_the_end.worth(now, now))


@EVERY
@settings(max_examples=50, deadline=None)
@given(steps_used, st.integers(0, LAYERS - 1))
def test_experts_of_one_layer_compare_the_same_at_any_tick_of_a_step(
    name: str, history: list[list[list[bool]]], layer: int
) -> None:
    """What replay of fixed slots a layer relies on: it judges all layers at the end of the step."""
    policies = [make_policy(name, LAYERS, EXPERTS, TOP_K) for _ in range(2)]
    step, last = len(history) - 1, history[-1]
    for policy in policies:
        run(policy, history[:-1])
    for each in range(layer + 1):
        policies[0].touched(keys_of(last, each), step)
    policies[1].touched(all_keys(last), step)
    ticks = (step * LAYERS + layer, (step + 1) * LAYERS - 1)
    early, late = (policy.worth(now, now)[layer] for policy, now in zip(policies, ticks, strict=True))
    assert np.array_equal(early[:, None] < early, late[:, None] < late)
