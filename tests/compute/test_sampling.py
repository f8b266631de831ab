"""Choosing tokens: transformers' distribution, and randomness that depends on seed and output index alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from expertflow.ipc.messages import Sampling
from expertflow.workers.compute.sampling.choose import choose, choose_all
from expertflow.workers.compute.sampling.distribution import distribution, uniform
from expertflow.workers.compute.sampling.failure import RowFailed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VOCABULARY = 40


def logits(rows: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn((rows, VOCABULARY), generator=torch.Generator().manual_seed(seed))


def of_transformers(row: Tensor, sampling: Sampling) -> np.ndarray:
    """What `generate` samples from, computed in float64."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers(torch.zeros(1, 1).long(), row.double()[None])[0].softmax(-1).numpy()  # pyright: ignore[reportArgumentType]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.05, 5.0),
    top_k=st.integers(0, VOCABULARY + 5),
    top_p=st.floats(0.01, 1.0),
    min_p=st.just(0.0) | st.floats(1e-6, 1.0),
)
def test_distribution_is_that_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature, top_k, top_p, min_p=min_p)
    row = logits(1, seed)[0]
    np.testing.assert_allclose(distribution(row, sampling), of_transformers(row, sampling), atol=1e-12)


def test_ties_at_the_k_th_value_all_stay() -> None:
    """As in transformers: cutting one of them off would depend on a sort."""
    row = torch.tensor([1.0, 2.0, 2.0, 3.0, 0.0])
    sampling = Sampling(1.0, top_k=2)
    assert (distribution(row, sampling) > 0).tolist() == [False, True, True, True, False]
    np.testing.assert_allclose(distribution(row, sampling), of_transformers(row, sampling), atol=1e-12)


@pytest.mark.parametrize("top_p", [0.0, 1e-9])
def test_top_p_always_leaves_the_best_token(top_p: float) -> None:
    row = logits(1)[0]
    assert distribution(row, Sampling(1.0, top_p=top_p)).argmax() == row.argmax()


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0), Sampling(1.7), Sampling(1.3, top_k=7), Sampling(1.5, top_p=0.8), Sampling(2.0, 12, 0.9)]
)
def test_drawn_tokens_follow_the_distribution(sampling: Sampling) -> None:
    """Chi-square over 4000 output indices; at 5 standard deviations above its mean something is wrong."""
    row, draws = logits(1, 3)[0], 4000
    counts = np.zeros(VOCABULARY)
    for index in range(draws):
        counts[choose(row, Sampling(sampling.temperature, sampling.top_k, sampling.top_p, seed=11), index)] += 1
    expected = of_transformers(row, sampling) * draws
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    counted, wanted = np.append(counts[often], counts[~often].sum()), np.append(expected[often], expected[~often].sum())
    counted, wanted = counted[wanted > 0], wanted[wanted > 0]
    degrees = len(wanted) - 1
    assert ((counted - wanted) ** 2 / wanted).sum() < degrees + 5 * np.sqrt(2 * degrees)


def test_uniform_is_even_and_new_for_every_seed_and_index() -> None:
    """Counters that only differ in one of the two must not repeat each other's numbers."""
    drawn = np.array([uniform(seed, index) for seed in range(50) for index in range(50)])
    assert len(set(drawn.tolist())) == 2500
    assert abs(drawn.mean() - 0.5) < 5 / np.sqrt(12 * 2500)
    assert uniform(3, 4) != uniform(4, 3)
    assert 0 <= drawn.min() <= drawn.max() < 1


def test_uniform_is_the_same_tomorrow() -> None:
    """A restarted process must continue a sequence as the dead one would have."""
    assert uniform(7, 3) == 0.4821286018761155
    assert uniform(-1, 0) == uniform(2**64 - 1, 0)


def test_same_seed_and_index_give_the_same_token_in_any_batch() -> None:
    rows = logits(6)
    samplings = [Sampling(1.0, top_p=0.9, seed=seed) for seed in range(6)]
    together = choose_all(rows, samplings, [4] * 6)
    order = [3, 1, 5, 0, 2, 4]
    shuffled = choose_all(rows[order], [samplings[row] for row in order], [4] * 6)
    assert shuffled == [together[row] for row in order]
    assert together == [choose(row, sampling, 4) for row, sampling in zip(rows, samplings, strict=True)]


def test_seed_and_output_index_both_change_the_draw() -> None:
    row = torch.zeros(VOCABULARY)
    by_index = {choose(row, Sampling(1.0, seed=1), index) for index in range(30)}
    by_seed = {choose(row, Sampling(1.0, seed=seed), 0) for seed in range(30)}
    assert len(by_index) > 10
    assert len(by_seed) > 10


@pytest.mark.parametrize("others", [Sampling(), Sampling(1.0)])
def test_greedy_takes_the_first_maximum_alone_and_among_sampled_rows(others: Sampling) -> None:
    """The fast path and the row-by-row path must not differ on ties."""
    rows = logits(3)
    rows[1, [5, 9, 30]] = 100.0
    assert choose_all(rows, [others, Sampling(), others], [0, 0, 0])[1] == 5


def test_low_temperature_is_greedy_and_does_not_overflow() -> None:
    row = logits(1)[0]
    assert choose(row, Sampling(1e-300, seed=5), 0) == row.argmax()


def test_sampling_ignores_the_precision_of_the_logits_container() -> None:
    row = logits(1)[0].bfloat16()
    assert choose(row, Sampling(1.0, seed=5), 2) == choose(row.float(), Sampling(1.0, seed=5), 2)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, top_k=3)])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_poisoned_row_fails_alone(sampling: Sampling, poison: float) -> None:
    """A row whose logits are broken must not take the others along, nor get a token by accident."""
    rows = logits(3)
    rows[1, 4] = poison
    first, second, third = choose_all(rows, [sampling] * 3, [0] * 3)
    if sampling.temperature or poison != float("inf"):
        assert isinstance(second, RowFailed)
        assert second.code == "request"
    assert (first, third) == (choose(rows[0], sampling, 0), choose(rows[2], sampling, 0))


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_temperature_that_is_none_fails(temperature: float) -> None:
    with pytest.raises(RowFailed, match="temperature"):
        choose(logits(1)[0], Sampling(temperature), 0)


def test_masked_logits_are_never_drawn() -> None:
    row = torch.full((VOCABULARY,), float("-inf"))
    row[[3, 17]] = 0.0
    assert {choose(row, Sampling(1.0, seed=2), index) for index in range(60)} == {3, 17}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_first_token_that_was_given_is_taken_once(temperature: float) -> None:
    """As transformers forces a beginning: whatever the logits are."""
    rows = torch.full((3, VOCABULARY), -1.0)
    rows[:, 4] = 100.0
    rows[0, 0] = float("nan")
    forced = Sampling(temperature, first_token=9)
    assert choose_all(rows, [forced, forced, Sampling(temperature)], [0, 1, 0]) == [9, 4, 4]
