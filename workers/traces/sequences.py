"""Which recorded tokens belong together, each once: sequences survive the deaths of compute and of the scheduler."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Numbers = TypeVar("Numbers", int, np.ndarray)

ROWS_LIMIT = 1 << 40


def number_sequences(
    schedulers: np.ndarray, rows: np.ndarray, positions: np.ndarray, token_ids: np.ndarray, seeds: dict[int, int]
) -> np.ndarray:
    """int64 [N]: the sequence of each token, counted from 0 in the order in which they begin.

    A sequence is a row of a scheduler. A scheduler that takes over gives open requests new rows: such a row goes on
    with an earlier one if the seed of its sampling is the same, and the tokens wherever both have some.
    `seeds` are by `row_key`.
    """
    keys, first, member = np.unique(row_key(schedulers, rows), return_index=True, return_inverse=True)
    begins = np.argsort(first, kind="stable")
    numbers = np.empty_like(begins)
    numbers[begins] = np.arange(len(begins))
    if np.ptp(schedulers):
        numbers = _merged(keys[begins], numbers, member, positions, token_ids, seeds)
    return numbers[member]


def row_key(scheduler: Numbers, row: Numbers) -> Numbers:
    """One number for a row of a scheduler."""
    return scheduler * ROWS_LIMIT + row


def first_of_each(sequences: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Places of the tokens that remain, by sequence and position: of what was computed again, the first time counts."""
    order = np.lexsort((positions, sequences))  # stable: what came first stays first
    again = (np.diff(sequences[order]) == 0) & (np.diff(positions[order]) == 0)
    return order[np.concatenate([[True], ~again])]


def _merged(
    keys: np.ndarray,
    numbers: np.ndarray,
    member: np.ndarray,
    positions: np.ndarray,
    token_ids: np.ndarray,
    seeds: dict[int, int],
) -> np.ndarray:
    """`numbers` with the numbers of rows that go on with earlier ones replaced by theirs, without gaps again."""
    owner = np.arange(len(keys))
    texts = _texts(numbers[member], positions, token_ids, len(keys))
    by_seed: dict[int | None, list[int]] = {}
    for place, key in enumerate(keys.tolist()):
        earlier = by_seed.setdefault(seeds.get(key), [])
        for other in earlier if key in seeds else ():
            if keys[other] // ROWS_LIMIT != key // ROWS_LIMIT and _agree(texts[other], texts[place]):
                owner[place] = owner[other]
                break
        earlier.append(place)
    return np.unique(owner, return_inverse=True)[1][numbers]


def _texts(sequences: np.ndarray, positions: np.ndarray, token_ids: np.ndarray, count: int) -> list[np.ndarray]:
    """(positions, token ids) of every sequence, each position once: int64 [2, tokens]."""
    kept = first_of_each(sequences, positions)
    bounds = np.searchsorted(sequences[kept], np.arange(1, count))
    return np.split(np.stack([positions[kept], token_ids[kept]]), bounds, axis=1)


def _agree(one: np.ndarray, other: np.ndarray) -> bool:
    common, in_one, in_other = np.intersect1d(one[0], other[0], assume_unique=True, return_indices=True)
    return bool(len(common)) and np.array_equal(one[1][in_one], other[1][in_other])
