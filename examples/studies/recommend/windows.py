"""The stream in ten windows: which interactions train, validate and test, and the histories that questions have."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .readers.rows import DataError, Ratings
from .xsmoe.model import HISTORY, NO_ITEM

WINDOWS = 10
TRAINED_SHARE = 0.85


@dataclass(frozen=True)
class Window:
    """Interactions of one window, in the order of time, of users with enough of them in it."""

    users: np.ndarray
    """int64 [rows]."""
    items: np.ndarray
    """int64 [rows]."""

    @property
    def trained_rows(self) -> int:
        """Return how many of the first rows train; the others validate."""
        return int(len(self.users) * TRAINED_SHARE)


@dataclass(frozen=True)
class Questions:
    """Users whose next item is asked for."""

    users: np.ndarray
    """int64 [n]."""
    histories: np.ndarray
    """int64 [n, HISTORY]: items before the target, the earliest first, NO_ITEM behind."""
    targets: np.ndarray
    """int64 [n]."""

    def __len__(self) -> int:
        return len(self.targets)


def cut_windows(ratings: Ratings, count: int = WINDOWS, least: int = 5) -> list[Window]:
    """Cut all rows into `count` windows of equal length; in each, drop users with fewer than `least` rows there.

    Items are not filtered.
    """
    windows = []
    for start, end in pairwise(np.linspace(0, len(ratings), count + 1).astype(int)):
        users, items = ratings.users[start:end], ratings.items[start:end]
        enough = np.bincount(users, minlength=len(ratings.user_names))[users] >= least
        windows.append(Window(users[enough], items[enough]))
    return windows


def require_full_windows(ratings: Ratings, count: int) -> None:
    """Raise DataError if one of `count` windows has nobody to train on, or to ask."""
    for number, window in enumerate(cut_windows(ratings, count), start=1):
        if not len(training_sequences(window)) or not len(next_questions(window)):
            what = f"is too small: window {number} of {count} has no user with enough interactions"
            raise DataError(what, ratings.name, "Name a larger data set, whose users have 5 interactions in a window")


def sequences_of(window: Window) -> dict[int, np.ndarray]:
    """Return user -> items of the window in the order of time."""
    order = np.argsort(window.users, kind="stable")
    users, starts = np.unique(window.users[order], return_index=True)
    pieces = np.split(window.items[order], starts[1:])[: len(users)]  # an empty array is split into one piece, too
    return dict(zip(users.tolist(), pieces, strict=True))


def training_sequences(window: Window) -> np.ndarray:
    """Return int64 [n, HISTORY + 1], NO_ITEM behind: the training part of each user, cut where it is longer.

    Two pieces of one user share an item, so that every item but the first is a target once.
    """
    part = Window(window.users[: window.trained_rows], window.items[: window.trained_rows])
    pieces = [
        items[start : start + HISTORY + 1]
        for items in sequences_of(part).values()
        for start in range(0, len(items) - 1, HISTORY)
    ]
    return pad(pieces, HISTORY + 1)


def validation_questions(window: Window) -> Questions:
    """Return the last item of each user in the validation part, and the items before it in the window."""
    last = {int(user) for user in window.users[window.trained_rows :]}
    return _ask({user: items for user, items in sequences_of(window).items() if user in last})


def next_questions(window: Window) -> Questions:
    """Return the last item of each user of a window, and the items before it there; not of users with one item."""
    return _ask(sequences_of(window))


def pad(rows: list[np.ndarray], width: int) -> np.ndarray:
    """Return int64 [rows, width] with NO_ITEM behind each row."""
    padded = np.full((len(rows), width), NO_ITEM, dtype=np.int64)
    for row, items in zip(padded, rows, strict=True):
        row[: len(items)] = items
    return padded


def _ask(sequences: dict[int, np.ndarray]) -> Questions:
    asked = {user: items for user, items in sequences.items() if len(items) > 1}
    histories = pad([items[-1 - HISTORY : -1] for items in asked.values()], HISTORY)
    targets = np.array([items[-1] for items in asked.values()], dtype=np.int64)
    return Questions(np.array(list(asked), dtype=np.int64), histories, targets)


class Seen:
    """Items that each user has had, so far; they are no candidates later."""

    def __init__(self, users: int, items: int) -> None:
        self._had = np.zeros((users, items), dtype=bool)

    def add(self, window: Window) -> None:
        """Add all interactions of a window."""
        self._had[window.users, window.items] = True

    def of(self, users: np.ndarray) -> np.ndarray:
        """Return bool [n, items] for `users`, int64 [n]."""
        return self._had[users]
