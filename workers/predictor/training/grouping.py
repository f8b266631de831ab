"""Sequences of similar length in one batch, so that little of it is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def grouped(
    lengths: Sequence[int], most_tokens: int, most: int, rng: np.random.Generator | None = None
) -> Iterator[list[int]]:
    """Places in `lengths`, each in one group of at most `most` with at most `most_tokens` padded tokens.

    With dice the groups are others every time, and in random order. What is longer than `most_tokens` is alone.
    """
    stretch = np.ones(len(lengths)) if rng is None else rng.uniform(0.8, 1.25, len(lengths))
    groups: list[list[int]] = [[]]
    longest = 0
    for place in np.argsort(np.asarray(lengths) * stretch, kind="stable").tolist():
        longest = max(longest, lengths[place])
        if groups[-1] and (len(groups[-1]) == most or (len(groups[-1]) + 1) * longest > most_tokens):
            groups.append([])
            longest = lengths[place]
        groups[-1].append(place)
    turns = range(len(groups)) if rng is None else rng.permutation(len(groups)).tolist()
    yield from (groups[turn] for turn in turns if groups[turn])
