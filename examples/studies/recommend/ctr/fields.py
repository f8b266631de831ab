"""Categories of users, items and histories as columns of numbers, which is what the baselines read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from ..readers.rows import Ratings, number_names
from ..xsmoe.model import NO_ITEM

HISTORY_FIELD = "history"
ITEM_FIELD = "item"
USER_FIELD = "user"
Batch = dict[str, Tensor]
"""Name of a field -> int64 [rows], or [rows, HISTORY] for the history."""


@dataclass(frozen=True)
class FieldTable:
    """Number of each user's and item's category, by field; number 0 of an item is kept for padding."""

    of_users: dict[str, Tensor]
    """int64 [users]."""
    of_items: dict[str, Tensor]
    """int64 [items]."""
    with_history: bool = False
    """Histories take the place of the user's own fields: most users of a stream are new."""

    @property
    def sizes(self) -> dict[str, int]:
        """Return the categories of each field of one value."""
        own = {} if self.with_history else self.of_users
        return {name: int(column.max()) + 1 for name, column in chain(own.items(), self.of_items.items())}

    def batch(self, users: Tensor, items: Tensor, histories: Tensor | None = None) -> Batch:
        """Return the columns of these pairs: users and items int64 [rows], histories int64 [rows, HISTORY]."""
        columns = {name: column[items] for name, column in self.of_items.items()}
        if self.with_history and histories is not None:
            return columns | {HISTORY_FIELD: histories - NO_ITEM}  # item + 1, so that 0 is padding
        return columns | {name: column[users] for name, column in self.of_users.items()}


def field_table(ratings: Ratings, with_history: bool = False) -> FieldTable:
    """Return user, item, the year, the labels as one category, and the fields of users that the data set has."""
    users = {USER_FIELD: torch.arange(len(ratings.user_names))}
    users |= {name: _column(values) for name, values in ratings.user_fields.items()}
    items = {
        ITEM_FIELD: torch.arange(1, len(ratings.item_names) + 1),
        "year": _column(str(facts.year) for facts in ratings.facts),
        "labels": _column(" ".join(facts.labels) for facts in ratings.facts),
    }
    return FieldTable(users, items, with_history)


def _column(values: Iterable[str]) -> Tensor:
    return torch.from_numpy(number_names(values)[0])


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under the ROC curve; equal scores count half. `labels` is bool [n]. 0.5 for a single class."""
    positive = int(labels.sum())
    negative = len(labels) - positive
    if not positive or not negative:
        return 0.5
    order = np.argsort(scores, kind="stable")
    _, which, counts = np.unique(scores[order], return_inverse=True, return_counts=True)
    mean_rank = (np.cumsum(counts) - (counts - 1) / 2)[which]
    ranks = mean_rank[labels[order]].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))
