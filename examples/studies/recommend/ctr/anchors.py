"""The anchors: AUC of the baselines on ratings of at least 4, split at random and by time, beside plain means."""

from __future__ import annotations

import msgspec
import numpy as np
import torch

from ..readers.rows import Ratings
from .fields import auc, field_table
from .models import make_model
from .training import CtrSchedule, Pairs, pairs_auc, train_pairs

LIKED = 4.0
SPLITS = ("random", "time")
ANCHORS: dict[str, dict[str, float]] = {
    "random": {"DeepFM": 0.784, "DCN": 0.779, "DCN-V2": 0.786, "DCN-V2 mix 4": 0.786, "means": 0.763},
    "time": {"DeepFM": 0.704, "DCN": 0.699, "DCN-V2": 0.706, "DCN-V2 mix 4": 0.695, "means": 0.701},
}
"""AUC on MovieLens-100K by an earlier run, one seed, of the same library with settings of its own."""
TOLERANCE = 0.005
MEANS = "means"


class Anchor(msgspec.Struct, frozen=True, kw_only=True):
    """AUC of one model on the test part of one split."""

    model: str
    split: str
    seed: int
    auc: float
    anchor: float | None
    best_epoch: int
    seconds: float
    unseen: float
    """Share of the test rows whose user has no row in the training part."""


def split_rows(count: int, split: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows, int64, for training (80 %), validation and test (10 % each); rows are in the order of time."""
    rows = np.random.default_rng(seed).permutation(count) if split == "random" else np.arange(count)
    first, second = count * 8 // 10, count * 9 // 10
    return rows[:first], rows[first:second], rows[second:]


def pairs_of(ratings: Ratings, rows: np.ndarray) -> Pairs:
    """Return these rows as pairs, positive from LIKED on."""
    users, items = torch.from_numpy(ratings.users[rows]), torch.from_numpy(ratings.items[rows])
    return Pairs(users, items, torch.from_numpy((ratings.ratings[rows] >= LIKED).astype(np.float32)))


def measure_anchor(ratings: Ratings, name: str, split: str, seed: int, schedule: CtrSchedule) -> Anchor:
    """Train one model on one split and return its AUC on the test part."""
    parts = split_rows(len(ratings), split, seed)
    if name == MEANS:
        score, best_epoch, seconds = means_auc(ratings, parts[0], parts[2]), 0, 0.0
    else:
        torch.manual_seed(seed)
        table = field_table(ratings)
        training, validation, test = (pairs_of(ratings, rows) for rows in parts)
        model = make_model(name, table)
        generator = torch.Generator().manual_seed(seed)
        ended = train_pairs(
            model, table, lambda epoch: training, lambda m: pairs_auc(m, table, validation), schedule, generator
        )
        score, best_epoch, seconds = pairs_auc(model, table, test), ended.best_epoch, ended.seconds
    unseen = float(1 - np.isin(ratings.users[parts[2]], ratings.users[parts[0]]).mean())
    known = ANCHORS[split].get(name) if ratings.name == "MovieLens-100K" else None
    return Anchor(
        model=name, split=split, seed=seed, auc=score, anchor=known, best_epoch=best_epoch, seconds=seconds,
        unseen=unseen,
    )  # fmt: skip


def means_auc(ratings: Ratings, training: np.ndarray, test: np.ndarray) -> float:
    """Return the AUC of item mean + user mean of the training part; who has no rating there has the mean of all."""
    liked = ratings.ratings >= LIKED
    overall = float(liked[training].mean())
    scores = np.zeros(len(test))
    for column in (ratings.users, ratings.items):
        sums = np.bincount(column[training], weights=liked[training], minlength=int(column.max()) + 1)
        counts = np.bincount(column[training], minlength=len(sums))
        means = np.where(counts > 0, sums / np.maximum(counts, 1), overall)
        scores += means[column[test]]
    return auc(scores, liked[test])
