"""Rules that choose a replica for a request: by experts, and three to compare with. Pure.

A rule only ranks. `choose` bounds the imbalance: a replica that has more than `slack` requests beyond the least busy
one is never chosen, whatever the rule says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, Protocol

import numpy as np

from ....errors import UsageError
from .fleet import Fleet

RuleName = Literal["experts", "two-choices", "round-robin", "prefix"]
DEFAULT_SLACK = 4
PREFIX_TOKENS = 32
"""Tokens of a prompt that decide under prefix affinity: one block of shared prefixes."""
SERVED_WEIGHT = 0.5
"""Weight of what a replica was sent, beside what it holds, which is known about a second later."""
MIN_LEAD = 1e-9


@dataclass(frozen=True)
class Job:
    """A request as a rule knows it."""

    prompt_ids: Sequence[int]
    mixture: np.ndarray
    """float64 [domains]: probabilities of the domains of its prompt."""
    label: str = ""
    learned: int = -1
    """Requests that were learned from when `mixture` was worked out (`Domains.learned`)."""


class RoutingRule(Protocol):
    """Ranks replicas for a request."""

    lookahead: int
    """Waiting requests among which the best one for a replica is looked for; 1: requests start in their order."""

    def scores(self, jobs: Sequence[Job], fleet: Fleet, places: np.ndarray) -> np.ndarray:
        """Return float64 [jobs, places]; the highest is preferred, of equals the least busy, then the least used."""
        ...


class ByExperts:
    """Prefers replicas whose held experts, and whose past requests, fit this domain better than the others.

    The fit of what a replica holds is relative to the mean over all domains; that of what it was sent, to half of the
    domain's share in all requests. A replica that holds many experts of every domain is no better for one of them, and
    one that was sent nothing is neutral: so the first domain does not draw all others to it.
    """

    lookahead = 16

    def scores(self, jobs: Sequence[Job], fleet: Fleet, places: np.ndarray) -> np.ndarray:
        at_home, shares = fleet.at_home[places], fleet.shares(places)
        known = max(int((at_home.sum(axis=0) > 0).sum()), 1)
        begun = shares.sum(axis=1) > 0
        overall = fleet.served.sum(axis=0) / max(float(fleet.served.sum()), 1e-12)
        fit = at_home + SERVED_WEIGHT * (shares - np.outer(begun, overall / 2))
        mixtures = np.stack([job.mixture for job in jobs])
        return mixtures @ fit.T - at_home.sum(axis=1) / known


class TwoChoices:
    """Takes the less busy of two replicas drawn at random."""

    lookahead = 1

    def __init__(self, seed: int = 0) -> None:
        self._random = Random(seed)

    def scores(self, jobs: Sequence[Job], fleet: Fleet, places: np.ndarray) -> np.ndarray:
        return np.stack([self._draw(fleet, places) for _ in jobs])

    def _draw(self, fleet: Fleet, places: np.ndarray) -> np.ndarray:
        scores = np.zeros(len(places))
        drawn = self._random.sample(range(len(places)), min(2, len(places)))
        scores[min(drawn, key=lambda index: int(fleet.outstanding[places[index]]))] = 1.0
        return scores


class RoundRobin:
    """Takes the replicas in turn."""

    lookahead = 1

    def scores(self, jobs: Sequence[Job], fleet: Fleet, places: np.ndarray) -> np.ndarray:
        return np.stack([-fleet.sent[places].astype(np.float64)] * len(jobs))


class PrefixAffinity:
    """Sends prompts that begin alike to one replica, by rendezvous hashing."""

    lookahead = 1

    def scores(self, jobs: Sequence[Job], fleet: Fleet, places: np.ndarray) -> np.ndarray:
        return np.stack([self._hashes(job, fleet, places) for job in jobs])

    def _hashes(self, job: Job, fleet: Fleet, places: np.ndarray) -> np.ndarray:
        prefix = np.asarray(job.prompt_ids[:PREFIX_TOKENS], dtype=np.int64).tobytes()
        keys = (fleet.names[place].encode()[-64:] for place in places.tolist())
        digests = [hashlib.blake2b(prefix, key=key, digest_size=6).digest() for key in keys]
        return np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.float64)


def make_rule(name: str, seed: int = 0) -> RoutingRule:
    """Return the rule of a name. Raises UsageError for one that there is not."""
    match name:
        case "experts":
            return ByExperts()
        case "two-choices":
            return TwoChoices(seed)
        case "round-robin":
            return RoundRobin()
        case "prefix":
            return PrefixAffinity()
    raise UsageError(f"no routing rule '{name}'", "routing", "Choose experts, two-choices, round-robin or prefix")


def choose(rule: RoutingRule, job: Job, fleet: Fleet, slack: int = DEFAULT_SLACK) -> int | None:
    """Return the index of the replica for a request, among those that have room; None: none is within the bound."""
    free = fleet.free
    allowed = free[fleet.outstanding[free] <= fleet.least + slack]
    if not len(allowed):
        return None
    scores = rule.scores([job], fleet, allowed)[0]
    best = allowed[scores >= scores.max() - MIN_LEAD]
    return int(best[np.lexsort((fleet.sent[best], fleet.outstanding[best]))[0]])


def best_job(rule: RoutingRule, jobs: Sequence[Job], fleet: Fleet, place: int) -> int:
    """Return the index of the job that a replica should take: where its lead over the best other replica is greatest.

    Of equals the first, so without a lead requests start in their order.
    """
    places = np.flatnonzero(fleet.open)
    own = places == place
    if len(jobs) < 2 or not own.any() or own.all():
        return 0
    scores = rule.scores(jobs, fleet, places)
    lead = scores[:, own][:, 0] - scores[:, ~own].max(axis=1)
    return int(lead.argmax()) if lead.max() - lead[0] > MIN_LEAD else 0
