"""Expected experts of a prompt, learned online from routing that really happened. Pure.

Requests are put into at most `MAX_DOMAINS` clusters by the experts that they used. A prompt is compared with the tokens
that the prompts of each cluster had (naive Bayes), or by its label if it has one. Old requests fade, so that domains
which come and go are followed. Labels are optional: they are one more thing that is seen together with experts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

MAX_DOMAINS = 16
MAX_TOKENS = 32_768
"""Token ids that are remembered; the one that was not seen for longest is forgotten first."""
MAX_LABELS = 256
FADE = 0.998
"""Factor on the weight of everything learned, at each request: half is forgotten after about 350."""
MIN_RATE = 0.02
"""Least share of a new request in its domain's mean: means follow a shift within about fifty requests."""
SMOOTHING = 0.5
"""Count that every token has in every domain before it was seen."""
TEMPERATURE = 2.0
"""Divisor of the log-odds of a prompt: its tokens are not independent, as naive Bayes takes them to be."""


class Domains:
    """Clusters of requests that use similar experts, and what their prompts look like."""

    def __init__(self, expert_count: int, max_domains: int = MAX_DOMAINS) -> None:
        """Begin without knowledge; `expert_count` is that of all layers together."""
        self.means = np.zeros((max_domains, expert_count), dtype=np.float32)
        """float32 [domains, experts]: share of a request's uses that fall on each expert; rows sum to 1, or are 0."""
        self.weights = np.zeros(max_domains)
        """float64 [domains]: faded number of requests."""
        self.version = 0
        """Grows when domains were merged, so that their numbers mean something else."""
        self.learned = 0
        self._counts = np.zeros((MAX_TOKENS, max_domains), dtype=np.float32)
        self._totals = np.zeros(max_domains)
        self._row_of: OrderedDict[int, int] = OrderedDict()
        self._labels: OrderedDict[str, np.ndarray] = OrderedDict()

    def learn(self, prompt_ids: Sequence[int], uses: np.ndarray, label: str = "") -> int:
        """Learn from a request that has ended; `uses` is float [experts], how often it used each. Return its domain."""
        total = float(uses.sum())
        if total <= 0:
            return -1
        share = (uses / total).astype(np.float32)
        self._fade()
        domain = self._place(share)
        rate = max(MIN_RATE, 1.0 / (self.weights[domain] + 1.0))
        self.means[domain] += np.float32(rate) * (share - self.means[domain])
        self.weights[domain] += 1.0
        self._count_tokens(prompt_ids, domain)
        self._count_label(label, domain)
        self.learned += 1
        return domain

    def mixture(self, prompt_ids: Sequence[int], label: str = "") -> np.ndarray:
        """Return float64 [domains], probabilities of the domains of a prompt; they sum to 1, or are 0 before learning.

        A label that was seen decides; otherwise the tokens do.
        """
        mass = self.weights.sum()
        if mass <= 0:
            return np.zeros_like(self.weights)
        if label in self._labels and self._labels[label].sum() > 0:
            return self._labels[label] / self._labels[label].sum()
        rows = [row for row in (self._row_of.get(token) for token in set(prompt_ids)) if row is not None]
        if not rows:
            return self.weights / mass
        return self._posterior(np.asarray(rows))

    def expected_uses(self, mixture: np.ndarray) -> np.ndarray:
        """Return float32 [experts], the expected share of uses of each expert for a `mixture`, float64 [domains]."""
        return (mixture.astype(np.float32) @ self.means).astype(np.float32)

    def _posterior(self, rows: np.ndarray) -> np.ndarray:
        odds = np.log(self._counts[rows] + SMOOTHING) - np.log(self._totals + SMOOTHING * MAX_TOKENS)
        scores = odds.sum(axis=0) / TEMPERATURE + np.log(self.weights + 1e-9)
        likely = np.where(self.weights > 0, np.exp(scores - scores[self.weights > 0].max()), 0.0)
        return likely / likely.sum()

    def _fade(self) -> None:
        self.weights *= FADE
        self._totals *= FADE
        if self.learned % 64 == 0:
            self._counts *= FADE**64
            for counts in self._labels.values():
                counts *= FADE**64

    def _place(self, share: np.ndarray) -> int:
        """Return the domain of a request that used experts in these shares; a new one if it is far from all.

        A request is far if it is farther from the nearest domain than the two nearest domains are from each other:
        those are merged then, unless one is free.
        """
        used = np.flatnonzero(self.weights > 0)
        if not len(used):
            return 0
        distances = np.linalg.norm(self.means[used] - share, axis=1)
        nearest = int(used[distances.argmin()])
        if len(used) < len(self.weights):
            return nearest if distances.min() < self._spread(used) else int(np.flatnonzero(self.weights <= 0)[0])
        first, second, apart = self._closest_pair()
        if distances.min() <= apart:
            return nearest
        self._merge(first, second)
        return second

    def _spread(self, used: np.ndarray) -> float:
        """Return a distance within which a request belongs to a domain: half of the mean distance of domains."""
        if len(used) < 2:
            return 0.0
        means = self.means[used]
        apart = np.linalg.norm(means[:, None] - means[None], axis=2)
        return float(apart.sum() / (len(used) * (len(used) - 1)) / 2)

    def _closest_pair(self) -> tuple[int, int, float]:
        apart = np.linalg.norm(self.means[:, None] - self.means[None], axis=2)
        np.fill_diagonal(apart, np.inf)
        first, second = divmod(int(apart.argmin()), len(apart))
        return first, second, float(apart[first, second])

    def _merge(self, into: int, other: int) -> None:
        """Add domain `other` to `into`, and empty it."""
        both = self.weights[into] + self.weights[other]
        part = np.float32(self.weights[other] / both)
        self.means[into] += part * (self.means[other] - self.means[into])
        for counts in (self._counts.T, self._totals, self.weights, *self._labels.values()):
            counts[into] += counts[other]
            counts[other] = 0
        self.means[other] = 0
        self.version += 1

    def _count_tokens(self, prompt_ids: Sequence[int], domain: int) -> None:
        for token in set(prompt_ids):
            row = self._row_of.pop(token, None)
            if row is None:
                row = self._free_row()
            self._row_of[token] = row
            self._counts[row, domain] += 1
            self._totals[domain] += 1

    def _free_row(self) -> int:
        if len(self._row_of) < MAX_TOKENS:
            return len(self._row_of)
        _, row = self._row_of.popitem(last=False)
        self._counts[row] = 0
        return row

    def _count_label(self, label: str, domain: int) -> None:
        if not label:
            return
        counts = self._labels.pop(label, None)
        self._labels[label] = np.zeros_like(self.weights) if counts is None else counts
        self._labels[label][domain] += 1
        if len(self._labels) > MAX_LABELS:
            self._labels.popitem(last=False)
