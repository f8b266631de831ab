"""Sequences of recorded tokens, each token once; they survive deaths of compute and of the scheduler."""

from __future__ import annotations

import numpy as np

SCHEDULER_SHIFT = 32
"""A scheduler of epoch E numbers its rows from E << 32."""


def number_sequences(
    rows: np.ndarray, positions: np.ndarray, token_ids: np.ndarray, seeds: dict[int, int]
) -> np.ndarray:
    """Return int64 [N]: the sequence of each token, counted from 0 in the order in which sequences begin.

    A sequence is a row. A new scheduler gives open requests new rows. Such a row continues an earlier one if the seeds
    of their sampling are equal, and their tokens at all positions that both have. `seeds` are by row.
    """
    distinct, first, member = np.unique(rows, return_index=True, return_inverse=True)
    begins = np.argsort(first, kind="stable")
    numbers = np.empty_like(begins)
    numbers[begins] = np.arange(len(begins))
    numbers = numbers[member]
    if np.ptp(rows >> SCHEDULER_SHIFT):
        texts = _tokens_by_sequence(numbers, positions, token_ids)
        numbers = _owners(distinct[begins].tolist(), texts, seeds)[numbers]
    return numbers


def first_of_each(sequences: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return int64 [n]: indices of the tokens by sequence and position, of a repeated token only the first.

    `sequences` and `positions` are int64 [tokens].
    """
    order = np.lexsort((positions, sequences))  # stable: what came first stays first
    repeated = (np.diff(sequences[order]) == 0) & (np.diff(positions[order]) == 0)
    return order[np.concatenate([[True], ~repeated])]


def _owners(rows: list[int], texts: list[np.ndarray], seeds: dict[int, int]) -> np.ndarray:
    """Return int64 [rows]: the sequence that each row begins or continues."""
    owner = np.arange(len(rows))
    by_seed: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        if row in seeds:
            earlier = by_seed.setdefault(seeds[row], [])
            others = (other for other in earlier if rows[other] >> SCHEDULER_SHIFT != row >> SCHEDULER_SHIFT)
            match = next((other for other in others if _tokens_match(texts[other], texts[index])), index)
            owner[index] = owner[match]
            earlier.append(index)
    return np.unique(owner, return_inverse=True)[1]


def _tokens_by_sequence(sequences: np.ndarray, positions: np.ndarray, token_ids: np.ndarray) -> list[np.ndarray]:
    """Return int64 [2, tokens] for every sequence: positions, each once, and token ids."""
    kept = first_of_each(sequences, positions)
    bounds = np.flatnonzero(np.diff(sequences[kept])) + 1
    return np.split(np.stack([positions[kept], token_ids[kept]]), bounds, axis=1)


def _tokens_match(one: np.ndarray, other: np.ndarray) -> bool:
    common, in_one, in_other = np.intersect1d(one[0], other[0], assume_unique=True, return_indices=True)
    return bool(len(common)) and np.array_equal(one[1][in_one], other[1][in_other])
