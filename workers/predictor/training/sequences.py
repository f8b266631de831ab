"""Training batches from a trace: pieces of sequences, padded, with their probabilities by the token table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...traces.trace import Trace
from ..base.token_table import expert_keys
from ..path.lexicon import MAX_GRAMS, grams_of
from .loop import group_by_length
from .module import Batch

PIECE_TOKENS = 512
"""Longer sequences are cut: the predictor must also learn rows whose history is missing."""
BATCH_TOKENS = 1024
DEVELOPMENT_SHARE = 0.08
MAX_DEVELOPMENT_TOKENS = 15_000
PRIOR_TOKENS = 1.0
"""Weight of popularity in the token table, in sightings."""


@dataclass(frozen=True)
class Piece:
    """Tokens `first` … `end` − 1 of a trace, from sequence `sequence`."""

    first: int
    end: int
    sequence: int

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.end - self.first


class Sequences:
    """A trace to learn from. The token table of each sequence is made without that sequence."""

    def __init__(self, trace: Trace, counts: np.ndarray, seen: np.ndarray, popularity: Tensor, grams: int) -> None:
        """`counts` [ids, width] and `seen` [ids] are those of the whole trace; `grams` is the number of buckets."""
        self._trace, self._popularity = trace, popularity
        self._counts, self._seen = torch.from_numpy(counts), torch.from_numpy(seen)
        self._tokens = torch.from_numpy(trace.token_ids)
        self._expert_keys = torch.from_numpy(expert_keys(trace.routes, trace.expert_count).astype(np.int32))
        self._grams = gram_table(trace.vocabulary, grams)

    def pieces(self) -> list[Piece]:
        """Return all sequences, cut into pieces of at most `PIECE_TOKENS` tokens."""
        offsets = self._trace.offsets.tolist()
        return [
            Piece(first, min(first + PIECE_TOKENS, end), number)
            for number, (begin, end) in enumerate(zip(offsets, offsets[1:], strict=False))
            for first in range(begin, end, PIECE_TOKENS)
        ]

    def groups(self, pieces: list[Piece], rng: np.random.Generator | None = None) -> Iterator[list[Piece]]:
        """Yield pieces of similar length together, at most `BATCH_TOKENS` with padding; with `rng` shuffled."""
        groups = group_by_length([piece.tokens for piece in pieces], BATCH_TOKENS, len(pieces), rng)
        return ([pieces[index] for index in group] for group in groups)

    def batches(self, pieces: list[Piece], rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield the groups as arrays; every token has its routing."""
        return (self._batch(group) for group in self.groups(pieces, rng))

    def _batch(self, group: list[Piece]) -> Batch:
        longest = max(piece.tokens for piece in group)
        indices = torch.zeros(len(group), longest, dtype=torch.int64)
        valid = torch.zeros(len(group), longest, dtype=torch.bool)
        for line, piece in enumerate(group):
            indices[line, : piece.tokens] = torch.arange(piece.first, piece.end)
            valid[line, : piece.tokens] = True
        tokens = self._tokens[indices]
        multi_hot = self._multi_hot(indices.flatten()).view(*indices.shape, -1) * valid[..., None]
        counts, seen = self._without_own(group, tokens)
        probabilities = (counts + PRIOR_TOKENS * self._popularity) / (seen[..., None] + PRIOR_TOKENS)
        grams = None if self._grams is None else self._grams[tokens]
        return Batch(torch.where(valid, tokens, -1), grams, multi_hot, probabilities, seen, valid.clone(), valid)

    def _without_own(self, group: list[Piece], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return counts and sightings less those of each piece's whole sequence, which would give the answers away."""
        counts, seen = self._counts[tokens].float(), self._seen[tokens].float()
        for line, piece in enumerate(group):
            begin, end = self._trace.offsets[piece.sequence : piece.sequence + 2].tolist()
            same = (tokens[line, : piece.tokens, None] == self._tokens[None, begin:end]).float()
            counts[line, : piece.tokens] -= same @ self._multi_hot(torch.arange(begin, end))
            seen[line, : piece.tokens] -= same.sum(dim=1)
        return counts, seen

    def _multi_hot(self, indices: Tensor) -> Tensor:
        """Return float32 [n, width] for tokens `indices` [n] of the trace."""
        multi_hot = torch.zeros(len(indices), self._counts.shape[1])
        return multi_hot.scatter_(1, self._expert_keys[indices].long(), 1.0)


def split_development(pieces: list[Piece], rng: np.random.Generator) -> tuple[list[Piece], list[Piece]]:
    """Return the pieces to learn from, and those of the sequences by which early stopping decides."""
    tokens = np.bincount([piece.sequence for piece in pieces], weights=[piece.tokens for piece in pieces])
    order = rng.permutation(np.flatnonzero(tokens))
    wanted = min(DEVELOPMENT_SHARE * tokens.sum(), MAX_DEVELOPMENT_TOKENS)
    chosen = set(order[: max(int(np.searchsorted(np.cumsum(tokens[order]), wanted)), 1)].tolist())
    learned = [piece for piece in pieces if piece.sequence not in chosen]
    return learned, [piece for piece in pieces if piece.sequence in chosen]


def gram_table(vocabulary: list[str] | None, buckets: int) -> Tensor | None:
    """Return int64 [ids, MAX_GRAMS]; None if tokens have no strings or the predictor has no n-grams."""
    if vocabulary is None or not buckets:
        return None
    table = np.empty((len(vocabulary), MAX_GRAMS), dtype=np.int64)
    for line, text in enumerate(vocabulary):
        table[line] = grams_of(text, buckets)
    return torch.from_numpy(table)
