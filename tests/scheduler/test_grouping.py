"""Grouping of rows: permutations of equal sizes that never cost more, near the optimum where that can be known."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from expertflow.workers.scheduler.grouping.clustering import kmeans, similarities
from expertflow.workers.scheduler.grouping.objective import count_activated, to_probabilities, unused_by_others
from expertflow.workers.scheduler.grouping.swapping import swap
from hypothesis import given, settings
from hypothesis import strategies as st

Case = tuple[np.ndarray, np.ndarray]


@st.composite
def cases(draw: st.DrawFn, most_rows: int = 12) -> Case:
    """Routes of any kind and groups of any sizes, at least two."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, layers, experts = draw(st.integers(2, most_rows)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    routes = rng.random((rows, layers, experts)) ** 2
    kind = draw(st.sampled_from(("bool", "uint8", "float")))
    if kind == "bool":
        routes = routes > 0.4
    elif kind == "uint8":
        routes = (routes * 255).astype(np.uint8)
    count = draw(st.integers(2, min(rows, 4)))
    groups = rng.permutation(np.concatenate([np.arange(count), rng.integers(0, count, rows - count)]))
    return routes, groups * draw(st.sampled_from((1, 7)))


def naive(routes: np.ndarray, groups: np.ndarray) -> float:
    """The objective, expert by expert."""
    used = to_probabilities(routes).reshape(routes.shape)
    total = 0.0
    for group in set(groups.tolist()):
        for layer in range(routes.shape[1]):
            for expert in range(routes.shape[2]):
                unused = 1.0
                for row in np.flatnonzero(groups == group):
                    unused *= 1 - used[row, layer, expert]
                total += 1 - unused
    return total


@given(cases())
def test_the_objective_is_the_sum_of_the_unions(case: Case) -> None:
    routes, groups = case
    assert count_activated(routes, groups) == pytest.approx(naive(routes, groups), abs=1e-3)


def test_true_routes_count_experts() -> None:
    """Two groups of one layer: {0, 1} ∪ {1, 2} and {3} are four experts."""
    routes = np.zeros((3, 1, 5), dtype=bool)
    routes[[0, 0, 1, 1, 2], 0, [0, 1, 1, 2, 3]] = True
    assert count_activated(routes, np.array([0, 0, 1])) == 4
    assert count_activated(routes, np.array([0, 1, 1])) == 5


def test_scores_that_are_no_probabilities_are_bounded() -> None:
    """A predictor may send anything (I2)."""
    routes = np.array([[[np.nan, np.inf]], [[-1.0, 0.5]]])
    assert to_probabilities(routes).tolist() == [[0, 1], [0, 0.5]]
    assert to_probabilities(np.array([[[0, 51, 255]]], dtype=np.uint8))[0] == pytest.approx([0, 0.2, 1])


@given(cases())
def test_what_mates_leave_unused(case: Case) -> None:
    """Also where factors are 0, so nothing may be divided."""
    routes, groups = case
    unused = 1 - to_probabilities(routes)
    for row, found in enumerate(unused_by_others(unused, groups)):
        mates = (groups == groups[row]) & (np.arange(len(groups)) != row)
        assert found == pytest.approx(unused[mates].prod(axis=0), abs=1e-5)


@pytest.mark.parametrize("group", [swap, kmeans])
@given(case=cases())
def test_groups_keep_their_names_and_sizes(group, case: Case) -> None:  # noqa: ANN001 - one of two functions
    routes, groups = case
    before = groups.copy()
    found = group(routes, groups)
    assert sorted(found.tolist()) == sorted(groups.tolist())
    assert (groups == before).all(), "what was given has changed"
    assert (group(routes, groups) == found).all(), "not the same every time"


@given(cases())
def test_swapping_never_costs_an_expert(case: Case) -> None:
    routes, groups = case
    assert count_activated(routes, swap(routes, groups)) <= count_activated(routes, groups) + 1e-3


@given(cases())
def test_after_swapping_no_single_exchange_helps(case: Case) -> None:
    """The judgement by one product of matrices against the objective itself."""
    routes, groups = case
    found = swap(routes, groups)
    cost = count_activated(routes, found)
    for a, b in permutations(range(len(found)), 2):
        exchanged = found.copy()
        exchanged[[a, b]] = exchanged[[b, a]]
        assert count_activated(routes, exchanged) >= cost - 0.02


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_swapping_is_near_the_optimum(seed: int) -> None:
    """Six rows in two groups: every partition tried. Local search may end above the best, never by much."""
    routes = np.random.default_rng(seed).random((6, 3, 8)) < 0.35
    groups = np.array([0, 0, 0, 1, 1, 1])
    costs = [count_activated(routes, np.array(names)) for names in set(permutations(groups.tolist()))]
    assert min(costs) <= count_activated(routes, swap(routes, groups)) <= min(costs) + 0.6 * (max(costs) - min(costs))


def routes_of_kinds(kinds: np.ndarray) -> np.ndarray:
    """Rows of one kind use the same four experts of each layer, which no other kind uses."""
    routes = np.zeros((len(kinds), 2, 4 * (int(kinds.max()) + 1)), dtype=bool)
    for row, kind in enumerate(kinds):
        routes[row, :, 4 * kind : 4 * kind + 4] = True
    return routes


@pytest.mark.parametrize("count", [2, 3, 4])
def test_kmeans_brings_rows_of_one_kind_together(count: int) -> None:
    """Kinds in turn, so that every group has all; some first centroids must be of different kinds."""
    routes, groups = routes_of_kinds(np.arange(4 * count) % count), np.repeat(np.arange(count), 4)
    costs = [count_activated(routes, kmeans(routes, groups, seed)) for seed in range(8)]
    assert min(costs) == count * 8 < count_activated(routes, groups)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_swapping_returns_strays(count: int) -> None:
    """One row in four is in a wrong group."""
    groups = np.repeat(np.arange(count), 4)
    routes = routes_of_kinds(np.roll(groups, 1))
    assert count_activated(routes, swap(routes, groups)) == count * 8 < count_activated(routes, groups)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_swapping_parts_kinds_that_are_in_every_group(count: int) -> None:
    """No first exchange saves anything (mutant: no doubt in the routes)."""
    groups = np.repeat(np.arange(count), 4)
    routes = routes_of_kinds(np.arange(4 * count) % count)
    assert count_activated(routes, swap(routes, groups)) == count * 8 < count_activated(routes, groups)


def test_kmeans_names_groups_so_that_few_rows_move() -> None:
    """The names of clusters mean nothing, but a row that changes its group must be copied."""
    routes = np.zeros((8, 1, 2), dtype=bool)
    routes[:4, 0, 0] = routes[4:, 0, 1] = True
    for groups in ([3, 3, 3, 3, 9, 9, 9, 9], [9, 9, 9, 9, 3, 3, 3, 3]):
        assert kmeans(routes, np.array(groups)).tolist() == groups


def test_similarity_is_one_less_the_share_of_differing_bits() -> None:
    routes = np.array([[[1, 1, 0, 0]], [[1, 0, 1, 0]], [[1, 1, 0, 0]]], dtype=bool)
    assert similarities(routes) == pytest.approx(np.array([[1, 0.5, 1], [0.5, 1, 0.5], [1, 0.5, 1]]))
