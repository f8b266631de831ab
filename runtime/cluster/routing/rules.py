"""Rules that choose a replica for a request: by experts, and three to compare with. Pure.

A rule only ranks. `choose` bounds the imbalance: a replica that has too many requests beyond the least busy one is
never chosen, whatever the rule says.
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
SLACK_PART = 16
"""Requests of the least busy replica for each that another one may have beyond it, under routing by experts."""
MIN_LEAD = 1e-12


@dataclass(frozen=True)
class Job:
    """A request as a rule knows it."""

    prompt_ids: Sequence[int]
    forecast: np.ndarray
    """float32 [FEATURES]: expected uses of experts, less those of all requests; 0: not known."""
    label: str = ""
    learned: int = -1
    """Requests that were learned from when `forecast` was worked out (`Forecasts.learned`)."""


class RoutingRule(Protocol):
    """Ranks replicas for requests."""

    lookahead: int
    """Waiting requests among which one is looked for that fits a replica; 1: requests start in their order."""

    def bound(self, slack: int, least: int) -> int:
        """Return how many requests a replica may have beyond the least busy one, which has `least`."""
        ...

    def scores(self, jobs: Sequence[Job], fleet: Fleet, places: np.ndarray) -> np.ndarray:
        """Return float64 [jobs, places]; the highest is preferred, of equals the first job, at the least busy."""
        ...


class ByExperts:
    """Prefers a replica whose home (`Homes`) a forecast is nearer to than to any other open replica's.

    Imbalance grows with the load up to `slack`: where few requests run, one more than elsewhere is felt at their end.
    """

    lookahead = 16

    def bound(self, slack: int, least: int) -> int:
        return min(slack, least // SLACK_PART)

    def scores(self, jobs: Sequence[Job], fleet: Fleet, places: np.ndarray) -> np.ndarray:
        among = np.flatnonzero(fleet.open)
        fits = fleet.homes.fits(np.stack([job.forecast for job in jobs]), among)
        return leads(fits)[:, np.searchsorted(among, places)]


def leads(fits: np.ndarray) -> np.ndarray:
    """Return float64 [jobs, places]: by how much each of `fits` is above the best other one of its row."""
    if fits.shape[1] < 2:
        return np.zeros_like(fits)
    second, first = np.partition(fits, -2, axis=1)[:, -2:].T[:, :, None]
    return fits - np.where(fits >= first, second, first)


class PlainRule:
    """Rules to compare with: the bound of imbalance is `slack` alone."""

    lookahead = 1

    def bound(self, slack: int, least: int) -> int:
        return slack


class TwoChoices(PlainRule):
    """Takes the less busy of two replicas drawn at random."""

    def __init__(self, seed: int = 0) -> None:
        self._random = Random(seed)

    def scores(self, jobs: Sequence[Job], fleet: Fleet, places: np.ndarray) -> np.ndarray:
        return np.stack([self._draw(fleet, places) for _ in jobs])

    def _draw(self, fleet: Fleet, places: np.ndarray) -> np.ndarray:
        scores = np.zeros(len(places))
        drawn = self._random.sample(range(len(places)), min(2, len(places)))
        scores[min(drawn, key=lambda index: int(fleet.outstanding[places[index]]))] = 1.0
        return scores


class RoundRobin(PlainRule):
    """Takes the replicas in turn."""

    def scores(self, jobs: Sequence[Job], fleet: Fleet, places: np.ndarray) -> np.ndarray:
        return np.stack([-fleet.sent[places].astype(np.float64)] * len(jobs))


class PrefixAffinity(PlainRule):
    """Sends prompts that begin alike to one replica, by rendezvous hashing."""

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


def choose(rule: RoutingRule, jobs: Sequence[Job], fleet: Fleet, slack: int = DEFAULT_SLACK) -> tuple[int, int] | None:
    """Return the index of the job that starts next and that of its replica; None: none has room within the bound."""
    free = fleet.free
    allowed = free[fleet.outstanding[free] <= fleet.least + rule.bound(slack, fleet.least)]
    if not len(allowed):
        return None
    scores = rule.scores(jobs, fleet, allowed)
    job, column = np.nonzero(scores >= scores.max() - MIN_LEAD)
    place = allowed[column]
    best = np.lexsort((fleet.sent[place], fleet.outstanding[place], job))[0]
    return int(job[best]), int(place[best])
