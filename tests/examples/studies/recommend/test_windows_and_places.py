"""Windows, questions, the loss and its mask, and places against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from expertflow.examples.studies.recommend.ranking.places import candidates, mean_quality, places, quality
from expertflow.examples.studies.recommend.readers.rows import Interaction, Ratings, build_ratings
from expertflow.examples.studies.recommend.stream import hidden_items
from expertflow.examples.studies.recommend.synthetic import make_ratings
from expertflow.examples.studies.recommend.windows import (
    Questions,
    Seen,
    Window,
    cut_windows,
    next_questions,
    training_sequences,
    validation_questions,
)
from expertflow.examples.studies.recommend.xsmoe.loss import log_popularity, mask_own
from expertflow.examples.studies.recommend.xsmoe.model import HISTORY, NO_ITEM


def window_of(users: list[int], items: list[int]) -> Window:
    return Window(np.array(users), np.array(items))


def ratings_of(pairs: list[tuple[str, str]]) -> Ratings:
    return build_ratings("t", [Interaction(user, item, 5.0, time) for time, (user, item) in enumerate(pairs)])


def test_windows_have_equal_counts_and_drop_rare_users_of_the_window_alone() -> None:
    pairs = [("a", f"i{n}") for n in range(4)] + [("b", "i0")] + [("b", f"i{n}") for n in range(5)]
    first, second = cut_windows(ratings_of(pairs), count=2, least=2)
    assert first.users.tolist() == [0, 0, 0, 0]
    assert second.users.tolist() == [1, 1, 1, 1, 1]


def test_items_are_numbered_as_they_appear() -> None:
    assert ratings_of([("a", "z"), ("a", "b"), ("b", "z")]).items.tolist() == [0, 1, 0]


def test_ten_windows_hold_every_row_once() -> None:
    ratings = make_ratings(rows=1003)
    windows = cut_windows(ratings, least=1)
    assert np.concatenate([window.items for window in windows]).tolist() == ratings.items.tolist()
    assert {len(window.items) for window in windows} == {100, 101}


def test_the_training_part_is_cut_so_that_each_later_item_is_a_target_once() -> None:
    items = list(range(30))
    sequences = training_sequences(window_of([0] * 30, items))
    trained = int(30 * 0.85)
    targets = [row[row != NO_ITEM][1:].tolist() for row in sequences]
    assert sum(targets, []) == items[1:trained]
    assert sequences.shape[1] == HISTORY + 1


def test_a_question_is_the_last_item_after_at_most_ten() -> None:
    asked = next_questions(window_of([0] * 13 + [1, 2, 2], [*range(13), 20, 21, 22]))
    assert asked.users.tolist() == [0, 2]
    assert asked.targets.tolist() == [12, 22]
    assert asked.histories[0].tolist() == list(range(2, 12))
    assert asked.histories[1].tolist() == [21] + [NO_ITEM] * 9


def test_validation_asks_users_of_the_last_part_alone() -> None:
    asked = validation_questions(window_of([0] * 10 + [1] * 10, list(range(20))))
    assert asked.users.tolist() == [1]


def test_what_was_had_before_and_what_is_not_known_yet_is_hidden() -> None:
    seen = Seen(users=2, items=6)
    seen.add(window_of([0, 1], [2, 3]))
    asked = Questions(np.array([0]), np.array([[1] + [NO_ITEM] * 9]), np.array([4]))
    assert np.flatnonzero(hidden_items(asked, seen, 6)[0]).tolist() == [2, 5]


@pytest.mark.parametrize("seed", range(4))
def test_places_and_measures_agree_with_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, hidden = random.integers(0, 9, (30, 40)).astype(float), random.random((30, 40)) < 0.3
    targets = random.integers(0, 40, 30)
    hr10 = ndcg20 = auc = 0.0
    for row, target in enumerate(targets):
        others = [item for item in range(40) if item != target and not hidden[row, item]]
        place = 1 + sum(scores[row, item] >= scores[row, target] for item in others)
        assert places(scores, targets, hidden)[row] == place
        hr10 += place <= 10
        ndcg20 += (place <= 20) / math.log2(place + 1)
        auc += sum(scores[row, item] < scores[row, target] for item in others) / len(others)
    measured = quality(places(scores, targets, hidden), candidates(hidden, targets))
    assert measured.hr10 == pytest.approx(100 * hr10 / 30)
    assert measured.ndcg20 == pytest.approx(100 * ndcg20 / 30)
    assert measured.auc == pytest.approx(auc / 30)


def test_a_repeat_purchase_can_be_found() -> None:
    """Trap 4 of the published code: it hides the target with the history, which makes a repeat a miss for ever."""
    scores, hidden = np.array([[0.1, 0.9, 0.3]]), np.array([[False, True, False]])
    assert places(scores, np.array([1]), hidden).tolist() == [1]


@pytest.mark.parametrize("scores", [np.zeros((1, 5)), np.full((1, 5), np.nan)])
def test_a_model_without_an_opinion_gains_nothing(scores: np.ndarray) -> None:
    assert places(scores, np.array([2]), np.zeros((1, 5), dtype=bool)).tolist() == [5]


def test_the_mean_over_windows_is_plain() -> None:
    many, few = quality(np.array([1] * 9), np.full(9, 50)), quality(np.array([50]), np.array([50]))
    assert mean_quality([many, few]).hr10 == 50.0


def test_a_users_own_other_items_are_no_candidates_of_the_loss() -> None:
    columns = torch.tensor([[0, 1, 2, -1], [3, 0, -1, -1]])
    masked = mask_own(torch.zeros(2, 3, 5), columns, columns[:, 1:])
    assert torch.isinf(masked[0, 0]).nonzero()[:, 0].tolist() == [0, 2]
    assert torch.isinf(masked[0, 1]).nonzero()[:, 0].tolist() == [0, 1]
    assert torch.isinf(masked[1, 0]).nonzero()[:, 0].tolist() == [3]


def test_popularity_is_the_log_of_the_share() -> None:
    shares = log_popularity(torch.tensor([0, 0, 0, 1]), 3).exp()
    torch.testing.assert_close(shares, torch.tensor([3.0, 1.0, 1.0]) / 5)
