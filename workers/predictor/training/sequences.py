"""Training batches from a trace: pieces of sequences, padded, with what the token table would say of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...traces.trace import Trace
from ..path.ngrams import MAX_GRAMS, grams_of
from .grouping import grouped
from .module import Batch

PIECE_TOKENS = 512
"""Longer sequences are cut: a row whose history is gone must get a forecast, too."""
BATCH_TOKENS = 1024
DEVELOPMENT_SHARE = 0.08
MAX_DEVELOPMENT_TOKENS = 15_000
PRIOR_TOKENS = 1.0
"""Popularity weighs as much in the token table as so many sightings."""


@dataclass(frozen=True)
class Piece:
    """Tokens `first` … `end` − 1 of a trace, from sequence `sequence`."""

    first: int
    end: int
    sequence: int

    @property
    def tokens(self) -> int:
        return self.end - self.first


class Sequences:
    """A trace to learn from. Each sequence is judged by a token table that was made without it."""

    def __init__(self, trace: Trace, counts: np.ndarray, seen: np.ndarray, popularity: Tensor, grams: int) -> None:
        """`counts` [ids, width] and `seen` [ids] of the whole trace."""
        self._trace, self._popularity = trace, popularity
        self._counts, self._seen = torch.from_numpy(counts), torch.from_numpy(seen)
        self._tokens = torch.from_numpy(trace.token_ids)
        starts = np.arange(trace.layers) * trace.expert_count
        self._places = torch.from_numpy(
            (trace.routes + starts[None, :, None]).reshape(trace.tokens, -1).astype(np.int32)
        )
        self._grams = gram_table(trace.vocabulary, grams)

    def pieces(self) -> list[Piece]:
        offsets = self._trace.offsets.tolist()
        return [
            Piece(first, min(first + PIECE_TOKENS, end), number)
            for number, (begin, end) in enumerate(zip(offsets, offsets[1:], strict=False))
            for first in range(begin, end, PIECE_TOKENS)
        ]

    def groups(self, pieces: list[Piece], rng: np.random.Generator | None = None) -> Iterator[list[Piece]]:
        """Pieces of similar length together, at most `BATCH_TOKENS` with padding; shuffled if there are dice."""
        places = grouped([piece.tokens for piece in pieces], BATCH_TOKENS, len(pieces), rng)
        return ([pieces[place] for place in group] for group in places)

    def batches(self, pieces: list[Piece], rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """The groups as arrays; all routing is `known`."""
        return (self._batch(group) for group in self.groups(pieces, rng))

    def _batch(self, group: list[Piece]) -> Batch:
        longest = max(piece.tokens for piece in group)
        places = torch.zeros(len(group), longest, dtype=torch.int64)
        valid = torch.zeros(len(group), longest, dtype=torch.bool)
        for line, piece in enumerate(group):
            places[line, : piece.tokens] = torch.arange(piece.first, piece.end)
            valid[line, : piece.tokens] = True
        tokens = self._tokens[places]
        routes = self._hot(places.flatten()).view(*places.shape, -1) * valid[..., None]
        counts, seen = self._without(group, tokens)
        used = (counts + PRIOR_TOKENS * self._popularity) / (seen[..., None] + PRIOR_TOKENS)
        grams = None if self._grams is None else self._grams[tokens]
        return Batch(torch.where(valid, tokens, -1), grams, routes, used, seen, valid.clone(), valid)

    def _without(self, group: list[Piece], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The table less what the whole sequence of each piece gave it: else it would know the answers."""
        counts, seen = self._counts[tokens].float(), self._seen[tokens].float()
        for line, piece in enumerate(group):
            begin, end = self._trace.offsets[piece.sequence : piece.sequence + 2].tolist()
            same = (tokens[line, : piece.tokens, None] == self._tokens[None, begin:end]).float()
            counts[line, : piece.tokens] -= same @ self._hot(torch.arange(begin, end))
            seen[line, : piece.tokens] -= same.sum(dim=1)
        return counts, seen

    def _hot(self, places: Tensor) -> Tensor:
        hot = torch.zeros(len(places), self._counts.shape[1])
        return hot.scatter_(1, self._places[places].long(), 1.0)


def divided(pieces: list[Piece], rng: np.random.Generator) -> tuple[list[Piece], list[Piece]]:
    """Pieces to learn from, and those of the sequences that early stopping judges by."""
    tokens = np.bincount([piece.sequence for piece in pieces], weights=[piece.tokens for piece in pieces])
    order = rng.permutation(np.flatnonzero(tokens))
    wanted = min(DEVELOPMENT_SHARE * tokens.sum(), MAX_DEVELOPMENT_TOKENS)
    aside = set(order[: max(int(np.searchsorted(np.cumsum(tokens[order]), wanted)), 1)].tolist())
    return [one for one in pieces if one.sequence not in aside], [one for one in pieces if one.sequence in aside]


def gram_table(vocabulary: list[str] | None, buckets: int) -> Tensor | None:
    """int64 [ids, MAX_GRAMS]; None where tokens have no strings or the predictor does not look at them."""
    if vocabulary is None or not buckets:
        return None
    table = np.empty((len(vocabulary), MAX_GRAMS), dtype=np.int64)
    for line, text in enumerate(vocabulary):
        table[line] = grams_of(text, buckets)
    return torch.from_numpy(table)
