"""The baselines of torch-rechub over our fields, their AUC and their ranking."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from expertflow.examples.studies.recommend.ctr import anchors, fields, models, stream, training
from expertflow.examples.studies.recommend.ranking.places import candidates, places, quality
from expertflow.examples.studies.recommend.synthetic import make_ratings
from expertflow.examples.studies.recommend.windows import Questions, Window
from expertflow.examples.studies.recommend.xsmoe.model import HISTORY, NO_ITEM

RATINGS = make_ratings(users=40, items=30, rows=1500)


@pytest.mark.parametrize("seed", range(3))
def test_auc_is_the_share_of_pairs_in_order(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, labels = random.integers(0, 6, 60), random.random(60) < 0.4
    pairs = [(s > t) + (s == t) / 2 for s in scores[labels] for t in scores[~labels]]
    assert fields.auc(scores, labels) == pytest.approx(np.mean(pairs))
    assert fields.auc(scores, labels | True) == 0.5


def test_fields_number_every_category_and_keep_zero_for_padding() -> None:
    table = fields.field_table(RATINGS)
    assert set(table.sizes) == {"user", "group", "item", "year", "labels"}
    assert int(table.of_items["item"].min()) == 1
    history = torch.full((1, HISTORY), NO_ITEM)
    history[0, 0] = 4
    batch = fields.field_table(RATINGS, with_history=True).batch(torch.tensor([0]), torch.tensor([2]), history)
    assert batch["history"].tolist() == [[5] + [0] * (HISTORY - 1)]
    assert batch["item"].tolist() == [3]
    assert "user" not in batch


@pytest.mark.parametrize("name", [*models.NAMES, *models.MIXTURES])
def test_every_model_scores_a_row_alike_alone_and_in_a_batch(name: str) -> None:
    table = fields.field_table(RATINGS, with_history=True)
    model = models.make_model(name, table).eval()
    items, histories = torch.arange(5), torch.arange(5)[:, None].expand(-1, HISTORY).contiguous()
    together = model(table.batch(items, items, histories))
    alone = [model(table.batch(items[:1], items[row : row + 1], histories[row : row + 1])) for row in range(5)]
    torch.testing.assert_close(torch.cat(alone), together)


def test_two_models_share_no_weight() -> None:
    """In torch-rechub a feature keeps the embedding table of its first model, so no two models may share features."""
    table = fields.field_table(RATINGS)
    first, second = (models.make_model("DCN", table) for _ in range(2))
    shared = {id(weight) for weight in first.parameters()} & {id(weight) for weight in second.parameters()}
    assert not shared


@pytest.mark.parametrize("split", anchors.SPLITS)
def test_a_split_uses_each_row_once_and_by_time_tests_the_last(split: str) -> None:
    parts = anchors.split_rows(1000, split, 3)
    assert [len(part) for part in parts] == [800, 100, 100]
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    assert (parts[2].min() == 900) == (split == "time")


def test_means_know_a_made_taste_and_a_model_trains_to_as_much() -> None:
    schedule = training.CtrSchedule(epochs=6, batch=64, rate=1e-2)
    means = anchors.measure_anchor(RATINGS, anchors.MEANS, "random", 0, schedule)
    deepfm = anchors.measure_anchor(RATINGS, "DeepFM", "random", 0, schedule)
    assert means.auc > 0.6 and deepfm.auc > means.auc
    assert means.anchor is None  # anchors are of MovieLens-100K alone


def test_the_best_epochs_weights_are_kept() -> None:
    table = fields.field_table(RATINGS)
    pairs = anchors.pairs_of(RATINGS, np.arange(200))
    model = models.make_model("DCN", table)
    seen, scores = [], iter([0.1, 0.9, 0.5, 0.4])

    def validate(trained: torch.nn.Module) -> float:
        seen.append(training.score_pairs(trained, table, pairs))
        return next(scores)

    schedule = training.CtrSchedule(epochs=4, patience=9, batch=64, rate=1e-2)
    ended = training.train_pairs(model, table, lambda epoch: pairs, validate, schedule, torch.Generator())
    assert ended.best_epoch == 2
    np.testing.assert_array_equal(training.score_pairs(model, table, pairs), seen[1])


def test_a_positive_pair_is_an_item_and_all_that_came_before() -> None:
    window = Window(np.zeros(8, dtype=np.int64), np.arange(8))  # six of them train
    pairs = stream.positive_pairs(window)
    assert pairs.items.tolist() == [1, 2, 3, 4, 5]
    assert pairs.histories is not None
    assert pairs.histories[4].tolist() == [0, 1, 2, 3, 4] + [NO_ITEM] * 5


def test_negatives_come_from_the_training_part() -> None:
    window = Window(np.zeros(8, dtype=np.int64), np.arange(8))
    pairs = stream.with_negatives(stream.positive_pairs(window), torch.Generator().manual_seed(0))
    assert len(pairs) == 5 * (1 + stream.NEGATIVES)
    assert int(pairs.labels.sum()) == 5
    assert set(pairs.items[5:].tolist()) <= {1, 2, 3, 4, 5}


def test_ranking_equals_scoring_every_pair() -> None:
    table = fields.field_table(RATINGS, with_history=True)
    torch.manual_seed(1)
    model = models.make_model("DeepFM", table)
    random, items = np.random.default_rng(0), len(RATINGS.item_names)
    asked = Questions(np.arange(6), random.integers(0, items, (6, HISTORY)), random.integers(0, items, 6))
    hidden = random.random((6, items)) < 0.3
    pairs = stream._question_pairs(asked, np.repeat(np.arange(6), items), np.tile(np.arange(items), 6))
    scores = training.score_pairs(model, table, pairs).reshape(6, items)
    expected = quality(places(scores, asked.targets, hidden), candidates(hidden, asked.targets))
    assert stream.rank(model, table, asked, hidden) == expected
