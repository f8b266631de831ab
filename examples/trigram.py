"""An interpolated trigram model over token ids: the bar that the built-in model has to clear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_EM_ROUNDS = 40
_CONTEXT_BUCKETS = 12


@dataclass(frozen=True)
class _Counts:
    """Number of occurrences of each key, an n-gram folded into one integer; keys ascend."""

    keys: Ids
    counts: Ids

    @staticmethod
    def of(keys: Ids) -> _Counts:
        return _Counts(*np.unique(keys, return_counts=True))

    def __call__(self, keys: Ids) -> Ids:
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, self.counts[places], 0)


class Trigram:
    """Jelinek-Mercer interpolation of trigram, bigram, unigram and uniform estimates.

    The weights depend on how often the two-token context was seen (in powers of two) and are fitted by
    expectation-maximisation on a development text.
    """

    def __init__(self, train: Ids, develop: Ids, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        pairs = self._fold(train[:-1], train[1:])
        self._unigrams = _Counts.of(train)
        self._bigrams = _Counts.of(pairs)
        self._trigrams = _Counts.of(self._fold(pairs[:-1], train[2:]))
        self._train_tokens = len(train)
        self._weights = self._fit(develop)

    def loss_nats(self, ids: Ids) -> float:
        """Return the mean negative log likelihood of every token of `ids` but the first two, in nats a token."""
        estimates, buckets = self._estimates(ids)
        return float(-np.log((estimates * self._weights[buckets]).sum(axis=1)).mean())

    def _fold(self, context: Ids, last: Ids) -> Ids:
        return context.astype(np.int64) * self._vocabulary + last

    def _estimates(self, ids: Ids) -> tuple[Floats, Ids]:
        """Return the four estimates of each token [tokens, 4] and its context's bucket [tokens]."""
        first, second, last = ids[:-2], ids[1:-1], ids[2:]
        context, pair = self._fold(first, second), self._fold(second, last)
        context_count = self._bigrams(context)
        columns = (
            self._trigrams(self._fold(context, last)) / np.maximum(context_count, 1),
            self._bigrams(pair) / np.maximum(self._unigrams(second), 1),
            self._unigrams(last) / self._train_tokens,
            np.full(len(last), 1 / self._vocabulary),
        )
        buckets = np.minimum(np.ceil(np.log2(context_count + 1)), _CONTEXT_BUCKETS - 1).astype(np.int64)
        return np.stack(columns, axis=1), buckets

    def _fit(self, develop: Ids) -> Floats:
        estimates, buckets = self._estimates(develop)
        weights = np.full((_CONTEXT_BUCKETS, 4), 0.25)
        for _ in range(_EM_ROUNDS):
            shares = estimates * weights[buckets]
            shares /= shares.sum(axis=1, keepdims=True)
            for bucket in np.unique(buckets):
                weights[bucket] = shares[buckets == bucket].mean(axis=0)
        return weights
