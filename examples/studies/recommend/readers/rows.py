"""Interactions as arrays, the facts about items and users beside them, and what happens to a bad row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .....errors import UsageError

SKIP = "Mend the row, or leave such rows out with --skip-bad"


class DataError(UsageError):
    """A row of a data set that cannot be read; names its file and line."""

    code = "data"


class Interaction(NamedTuple):
    """One row as it was read: names are those of the file."""

    user: str
    item: str
    rating: float
    seconds: int


class BadRows:
    """Raises for a bad row, or with `skip` counts it by file and reason."""

    def __init__(self, skip: bool = False) -> None:
        self._skip = skip
        self.counts: Counter[tuple[str, str]] = Counter()
        """(name of the file, reason) -> rows left out."""

    def report(self, file: Path, line: int, reason: str, found: object) -> None:
        """Count this row. Raises DataError, with file and line, unless bad rows are skipped."""
        if not self._skip:
            raise DataError(f"{reason}: {str(found)[:80]!r}", f"{file}:{line}", SKIP)
        self.counts[file.name, reason] += 1

    def table(self) -> dict[str, int]:
        """Return "file: reason" -> rows left out."""
        return {f"{file}: {reason}": count for (file, reason), count in sorted(self.counts.items())}


class ItemFacts(NamedTuple):
    """Text about an item. `year` is 0 if it is unknown."""

    title: str = ""
    labels: tuple[str, ...] = ()
    year: int = 0


@dataclass(frozen=True, kw_only=True)
class Ratings:
    """Interactions as arrays of equal length, in the order of time, with the facts that the data set gives."""

    name: str
    users: np.ndarray
    """int64 [rows], indices into `user_names`."""
    items: np.ndarray
    """int64 [rows], indices into `item_names`, which are numbered as they first appear in time."""
    ratings: np.ndarray
    """float32 [rows]."""
    seconds: np.ndarray
    """int64 [rows], since 1970, UTC; ascending."""
    user_names: list[str]
    item_names: list[str]
    facts: list[ItemFacts] = field(default_factory=list)
    """Of each item."""
    user_fields: dict[str, list[str]] = field(default_factory=dict)
    """Name of a field -> its value for each user, for example age or occupation."""

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> Ratings:
        """Return these rows (indices, int64 [n], ascending) with all names kept."""
        arrays = {name: getattr(self, name)[rows] for name in ("users", "items", "ratings", "seconds")}
        return replace(self, **arrays)


def number_names(names: Iterable[str]) -> tuple[np.ndarray, list[str]]:
    """Return int64 [n] numbers in the order of first appearance, and the name of each number."""
    numbers: dict[str, int] = {}
    column = np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
    return column, list(numbers)


def build_ratings(
    name: str,
    rows: Iterable[Interaction],
    facts: dict[str, ItemFacts] | None = None,
    user_fields: dict[str, dict[str, str]] | None = None,
) -> Ratings:
    """Return the rows in the order of time; rows of the same second keep the order of the file.

    `facts` are by item, `user_fields` by field and user. An item or user without facts gets empty ones. Raises
    DataError if there is no row.
    """
    ordered = sorted(rows, key=lambda row: row.seconds)
    if not ordered:
        raise DataError("holds no interaction", name, "Name a folder with a whole data set")
    users, user_names = number_names(row.user for row in ordered)
    items, item_names = number_names(row.item for row in ordered)
    return Ratings(
        name=name,
        users=users,
        items=items,
        ratings=np.array([row.rating for row in ordered], dtype=np.float32),
        seconds=np.array([row.seconds for row in ordered], dtype=np.int64),
        user_names=user_names,
        item_names=item_names,
        facts=[(facts or {}).get(item, ItemFacts()) for item in item_names],
        user_fields={
            field: [values.get(user, "") for user in user_names] for field, values in (user_fields or {}).items()
        },
    )
