"""The stream whole, and the traps of the published code that it avoids."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from expertflow.examples.studies.recommend.item_states import item_states
from expertflow.examples.studies.recommend.readers.rows import Interaction, ItemFacts, build_ratings
from expertflow.examples.studies.recommend.stream import StreamSettings, choices, run_stream
from expertflow.examples.studies.recommend.synthetic import make_ratings
from expertflow.examples.studies.recommend.windows import cut_windows, training_sequences
from expertflow.examples.studies.recommend.xsmoe.growth import expand
from expertflow.examples.studies.recommend.xsmoe.loss import batch_loss, log_popularity
from expertflow.examples.studies.recommend.xsmoe.model import Recommender, Sizes
from expertflow.examples.studies.recommend.xsmoe.training import Schedule, Trained, new_meters, train_window

WIDTH = 16
SIZES = Sizes(width=WIDTH, dim=16, inner=32, bottleneck=4)
RATINGS = make_ratings(users=30, items=40, rows=900)


def embed(texts: list[str]) -> np.ndarray:
    """Vectors that say which words a text has, by a fixed random vector a word."""
    vectors = np.zeros((len(texts), WIDTH), dtype=np.float32)
    for row, text in zip(vectors, texts, strict=True):
        for word in text.split():
            row += np.random.default_rng(list(word.encode())).normal(size=WIDTH)
    return vectors


@pytest.fixture(scope="module")
def states() -> torch.Tensor:
    return item_states(RATINGS.facts, embed)


def train(states: torch.Tensor, scores: Iterator[float], epochs: int, kept: list[dict[str, torch.Tensor]]) -> Trained:
    """Train a fresh model, which `validate` looks at, for `epochs` epochs; keep the weights of each validation."""
    torch.manual_seed(0)
    model = Recommender(SIZES)
    for layer in model.side_layers():
        expand(layer)
    window = cut_windows(RATINGS, 3)[0]

    def validate(model: Recommender) -> float:
        kept.append(copy.deepcopy(model.state_dict()))
        model.encode_items(states * 100, meters=None)  # an evaluation of other items
        return next(scores)

    schedule = Schedule(epochs=epochs, validate_from=1, batch=16)
    sequences, items = torch.from_numpy(training_sequences(window)), torch.from_numpy(window.items)
    trained = train_window(model, states, sequences, items, validate, schedule, torch.Generator().manual_seed(0))
    kept.append(model.state_dict())
    return trained


def test_the_best_epochs_weights_are_kept_not_a_reference_to_the_last(states: torch.Tensor) -> None:
    """Trap 2: the published code tests the last epoch, since its best checkpoint is the live weights."""
    kept: list[dict[str, torch.Tensor]] = []
    trained = train(states, iter([0.1, 0.9, 0.2, 0.3]), 4, kept)
    assert (trained.best_epoch, trained.epochs, trained.validation) == (2, 4, 0.9)
    assert all(torch.equal(kept[-1][name], kept[1][name]) for name in kept[1])
    assert any(not torch.equal(kept[-1][name], kept[3][name]) for name in kept[3])


def test_training_stops_when_validation_gains_nothing_for_five_epochs(states: torch.Tensor) -> None:
    assert train(states, iter([0.5] + [0.4] * 20), 30, []).epochs == 6


def test_use_is_counted_in_training_alone(states: torch.Tensor) -> None:
    """Trap 3: the published code counts evaluation passes, too."""
    validated = train(states, iter([0.1, 0.2, 0.3]), 3, [])
    torch.manual_seed(0)
    model = Recommender(SIZES)
    for layer in model.side_layers():
        expand(layer)
    meters = new_meters(model)
    model.encode_items(states)
    assert all(float(meter.norms.sum()) == 0 for meter in meters)
    assert [len(shares) for shares in validated.shares] == [2, 2, 2, 2]
    assert all(float(shares.sum()) == pytest.approx(1) for shares in validated.shares)


def test_frozen_experts_get_no_gradient_and_all_router_rows_do(states: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = Recommender(SIZES)
    for layer in model.side_layers():
        expand(layer)
    window = cut_windows(RATINGS, 3)[0]
    popularity = log_popularity(torch.from_numpy(window.items), states.shape[2])
    loss = batch_loss(model, states, torch.from_numpy(training_sequences(window)), popularity, None)
    loss.backward()
    assert torch.isfinite(loss)
    for layer in model.side_layers():
        old, new = layer.experts
        assert old.get_parameter("up.weight").grad is None
        assert new.get_parameter("up.weight").grad is not None
        assert layer.router.weight.grad is not None and bool((layer.router.weight.grad.abs().sum(1) > 0).all())


def test_the_stream_changes_each_layer_by_one_expert_at_most(states: torch.Tensor) -> None:
    """Trap 5: the number of experts moves by one a window; the paper's pruning takes at most one away."""
    settings = StreamSettings(windows=4, least=3, schedule=Schedule(epochs=7, batch=64), threshold=0.45)
    results = [result for result, _ in run_stream(RATINGS, states, settings)]
    assert [result.window for result in results] == [0, 1, 2]
    experts = np.array([result.experts for result in results])
    pruned = np.array([[number is not None for number in result.pruned] for result in results])
    assert (np.diff(experts, axis=0) == 1 - pruned[:-1]).all()
    assert pruned.any()
    assert {name for name in results[0].quality} == set(choices())


def test_a_stream_learns_what_follows_what() -> None:
    """In each window new users walk along one circle of items; only the next one is right."""
    walks = [(window, user, step) for window in range(3) for user in range(24) for step in range(9)]
    rows = [
        Interaction(f"{window}-{user}", f"w{(user * 5 + step) % 30}", 5.0, window * 1000 + user * 9 + step)
        for window, user, step in walks
    ]
    ratings = build_ratings("circle", rows, {f"w{item}": ItemFacts(f"w{item}") for item in range(30)})
    schedule = Schedule(epochs=30, batch=8, rate=3e-3)
    settings = StreamSettings(windows=3, schedule=schedule)
    results = [result for result, _ in run_stream(ratings, item_states(ratings.facts, embed), settings)]
    assert results[-1].quality["dense"].hr10 > 80


def test_a_seed_repeats_a_stream_and_dense_is_what_all_active_experts_give(states: torch.Tensor) -> None:
    settings = StreamSettings(windows=3, least=3, schedule=Schedule(epochs=2, validate_from=1))
    first, second = ([result for result, _ in run_stream(RATINGS, states, settings)] for _ in range(2))
    assert [result.quality for result in first] == [result.quality for result in second]
    assert first[1].quality["k=2"] == first[1].quality["dense"] == first[1].quality["k=8 renormalised"]


def test_states_of_a_static_encoder_are_the_same_at_each_layer_and_scaled(states: torch.Tensor) -> None:
    assert states.shape == (2, 3, len(RATINGS.item_names), WIDTH)
    assert torch.equal(states[:, 0], states[:, 1])
    torch.testing.assert_close(states[:, 0].norm(dim=2).mean(1), torch.ones(2))
