"""Event-atomic replay against hand-counted cases and slow, plain implementations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
import pytest
from expertflow.runtime.replay.atomic import CountedOutcome, Sharing, make_cache, replay
from expertflow.runtime.replay.future import Belady, Sch
from expertflow.runtime.replay.steps import Uses, batch_steps, uses_of
from expertflow.tests.runtime.replay.made import random_trace, uses_of_sets
from expertflow.workers.loader.policies import POLICIES, Policy, make_policy
from hypothesis import given, settings
from hypothesis import strategies as st

LAYERS, EXPERTS = 2, 4

small_sets = st.sets(st.integers(0, EXPERTS - 1), min_size=1, max_size=3)
programs = st.lists(st.lists(small_sets, min_size=LAYERS, max_size=LAYERS), min_size=1, max_size=10)


def run(uses: Uses, policy: Policy, slots: int, sharing: Sharing = "layer", bypass: bool = False) -> CountedOutcome:
    return replay(uses, policy, make_cache(sharing, uses, slots), bypass=bypass)


def test_conformance_case_of_2608_07911() -> None:
    """3 layers x 4 experts, 2 slots a layer: 30 accesses, 12 hits, 18 misses."""
    uses = uses_of_sets([[{0, each}] * 3 for each in (1, 2, 1, 3, 1)], experts=4)
    outcome = run(uses, make_policy("lru", 3, 4, 2), slots=6)
    assert (outcome.accesses, outcome.hits, outcome.loads) == (30, 12, 18)
    assert outcome.pressure == 1.0


def test_a_union_larger_than_the_cache_leaves_the_last_in_ascending_order() -> None:
    uses = uses_of_sets([[{0, 1, 2, 3}], [{0, 1}], [{1}]], experts=4)
    for sharing in ("layer", "pool"):
        cache = make_cache(sharing, uses, 2)
        cache.admit(uses.of(0), np.zeros((1, 4)))
        assert np.flatnonzero(cache.resident).tolist() == [2, 3]


# Slow and plain: sets, and what the name says


def events(uses: Uses, sharing: Sharing) -> Iterator[tuple[int, int, set[int]]]:
    for step in range(uses.steps):
        for layer, keys in enumerate(uses.split(uses.of(step))):
            yield step, layer, set(keys.tolist())


def plain_misses(uses: Uses, slots: int, sharing: Sharing, score: Callable[[list[list[int]], int], tuple]) -> int:
    """`score(uses so far by key, key)`: what leaves first has the lowest; ties by key."""
    groups = 1 if sharing == "pool" else uses.layers
    caches: list[set[int]] = [set() for _ in range(groups)]
    ticks: list[list[int]] = [[] for _ in range(uses.layers * uses.experts)]
    misses = 0
    for step, layer, wanted in events(uses, sharing):
        cache = caches[layer % groups]
        new = wanted - cache
        misses += len(new)
        for key in wanted:
            ticks[key].append(step * uses.layers + layer)
        keep = slots // groups - len(new)
        old = sorted(cache, key=lambda key: (score(ticks, key), key))
        cache -= set(old[: max(len(old) - max(keep, 0), 0)])
        cache |= set(sorted(new)[-(slots // groups) :])
    return misses


@settings(max_examples=60, deadline=None)
@given(programs, st.integers(1, 4), st.sampled_from(["pool", "layer"]))
def test_lru_is_the_plain_one(program: list[list[set[int]]], each: int, sharing: Sharing) -> None:
    uses = uses_of_sets(program, EXPERTS)
    expected = plain_misses(uses, each * LAYERS, sharing, lambda ticks, key: (ticks[key][-1],))
    assert run(uses, make_policy("lru", LAYERS, EXPERTS, 2), each * LAYERS, sharing).loads == expected


@settings(max_examples=60, deadline=None)
@given(programs, st.integers(1, 4), st.sampled_from(["pool", "layer"]))
def test_lfu_is_the_plain_one(program: list[list[set[int]]], each: int, sharing: Sharing) -> None:
    uses = uses_of_sets(program, EXPERTS)
    expected = plain_misses(uses, each * LAYERS, sharing, lambda ticks, key: (len(ticks[key]),))
    assert run(uses, make_policy("lfu", LAYERS, EXPERTS, 2), each * LAYERS, sharing).loads == expected


def fewest_misses(uses: Uses, slots: int, sharing: Sharing) -> int:
    """By trying every subset that could be kept after every event."""
    groups = 1 if sharing == "pool" else uses.layers
    total = 0
    for group in range(groups):
        costs: dict[frozenset[int], int] = {frozenset(): 0}
        for _, layer, wanted in events(uses, sharing):
            if layer % groups == group:
                costs = _after(costs, wanted, slots // groups)
        total += min(costs.values())
    return total


def _after(costs: dict[frozenset[int], int], wanted: set[int], slots: int) -> dict[frozenset[int], int]:
    following: dict[frozenset[int], int] = {}
    for cache, cost in costs.items():
        there = cache | wanted
        for kept in combinations(sorted(there), min(slots, len(there))):
            new = cost + len(wanted - cache)
            following[frozenset(kept)] = min(following.get(frozenset(kept), new), new)
    return following


@settings(max_examples=60, deadline=None)
@given(programs, st.integers(1, 3), st.sampled_from(["pool", "layer"]))
def test_no_choice_loads_less_than_belady(program: list[list[set[int]]], each: int, sharing: Sharing) -> None:
    uses = uses_of_sets(program[:6], EXPERTS)
    outcome = run(uses, Belady(uses), each * LAYERS, sharing, bypass=True)
    assert outcome.loads == fewest_misses(uses, each * LAYERS, sharing)


@pytest.mark.parametrize("sharing", ["pool", "layer"])
@pytest.mark.parametrize("rows", [1, 3])
def test_bounds_and_gaps_on_a_longer_trace(sharing: Sharing, rows: int) -> None:
    """Belady first, SCH between it and everything that does not know the future; counts agree with each other."""
    trace = random_trace(3, [20, 30, 10, 25, 15])
    uses = uses_of(trace, batch_steps(trace, rows))
    best = run(uses, Belady(uses), 15, sharing, bypass=True)
    foresighted = run(uses, Sch(uses, 8), 15, sharing)
    assert best.loads <= foresighted.loads and best.gap(best) == 0.0
    for name in POLICIES:
        outcome = run(uses, make_policy(name, 3, 8, 2), 15, sharing)
        assert outcome.hits + outcome.loads == outcome.accesses == len(uses.keys)
        assert foresighted.loads < outcome.loads and 0 < outcome.gap(best) < 1


def test_sch_looks_exactly_as_far_as_its_window() -> None:
    """Expert 1 is used in 2 of the next 3 steps, expert 0 in one, expert 2 in none."""
    uses = uses_of_sets([[{each}] for each in (0, 1, 2, 3, 1, 0, 1, 2)], experts=4)
    policy = Sch(uses, 3)
    assert np.argsort(policy.worth(3, 3)[0], kind="stable").tolist() == [2, 3, 0, 1]
    assert (policy.worth(3, 3)[0] * 4).tolist() == [1, 2, 0, 0]
    assert (policy.worth(6, 6)[0] * 4).tolist() == [0, 0, 1, 0]


def test_bypass_does_not_keep_what_is_worth_less() -> None:
    """Expert 0 is used again and again, 1, 2 and 3 once each."""
    uses = uses_of_sets([[{0}], [{0}], [{1}], [{2}], [{3}], [{0}]], experts=4)
    assert run(uses, make_policy("lfu", 1, 4, 1), 1, bypass=True).loads == 4
    assert run(uses, make_policy("lfu", 1, 4, 1), 1, bypass=False).loads == 5
