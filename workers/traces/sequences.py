"""Which recorded tokens belong together, each once: sequences survive the deaths of compute and of the scheduler."""

from __future__ import annotations

import numpy as np

SCHEDULER_SHIFT = 32
"""A scheduler of epoch E numbers its rows from E << 32."""


def number_sequences(
    rows: np.ndarray, positions: np.ndarray, token_ids: np.ndarray, seeds: dict[int, int]
) -> np.ndarray:
    """int64 [N]: the sequence of each token, counted from 0 in the order in which they begin.

    A sequence is a row. A scheduler that takes over gives open requests new rows: such a row goes on with an earlier
    one if the seed of its sampling is the same, and the tokens wherever both have some. `seeds` are by row.
    """
    distinct, first, member = np.unique(rows, return_index=True, return_inverse=True)
    begins = np.argsort(first, kind="stable")
    numbers = np.empty_like(begins)
    numbers[begins] = np.arange(len(begins))
    numbers = numbers[member]
    if np.ptp(rows >> SCHEDULER_SHIFT):
        texts = _texts(numbers, positions, token_ids)
        numbers = _owners(distinct[begins].tolist(), texts, seeds)[numbers]
    return numbers


def first_of_each(sequences: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Places of the tokens that remain, by sequence and position: of what was computed again, the first time counts."""
    order = np.lexsort((positions, sequences))  # stable: what came first stays first
    reissue_copies = (np.diff(sequences[order]) == 0) & (np.diff(positions[order]) == 0)
    return order[np.concatenate([[True], ~reissue_copies])]


def _owners(rows: list[int], texts: list[np.ndarray], seeds: dict[int, int]) -> np.ndarray:
    """For each row the number of the sequence that it begins or goes on with."""
    owner = np.arange(len(rows))
    by_seed: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        if row in seeds:
            earlier = by_seed.setdefault(seeds[row], [])
            others = (each for each in earlier if rows[each] >> SCHEDULER_SHIFT != row >> SCHEDULER_SHIFT)
            found = next((each for each in others if _agree(texts[each], texts[place])), place)
            owner[place] = owner[found]
            earlier.append(place)
    return np.unique(owner, return_inverse=True)[1]


def _texts(sequences: np.ndarray, positions: np.ndarray, token_ids: np.ndarray) -> list[np.ndarray]:
    """(positions, token ids) of every sequence, each position once: int64 [2, tokens]."""
    kept = first_of_each(sequences, positions)
    bounds = np.flatnonzero(np.diff(sequences[kept])) + 1
    return np.split(np.stack([positions[kept], token_ids[kept]]), bounds, axis=1)


def _agree(one: np.ndarray, other: np.ndarray) -> bool:
    common, in_one, in_other = np.intersect1d(one[0], other[0], assume_unique=True, return_indices=True)
    return bool(len(common)) and np.array_equal(one[1][in_one], other[1][in_other])
