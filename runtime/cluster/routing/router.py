"""The router: learns what prompts use, knows what replicas hold, and places requests by a rule. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....ipc.messages import RoutedExperts
from .domains import MAX_DOMAINS, Domains
from .fleet import Fleet, ReplicaState
from .rules import DEFAULT_SLACK, Job, RoutingRule, best_job, choose

MAX_PASSED = 16
"""Number of times that a waiting request may be passed over by one that fits a replica better."""
REFRESH_AFTER = 16
"""Requests learned from after which a waiting request is judged anew."""
NOTHING_KNOWN = np.zeros(MAX_DOMAINS)


class Router:
    """Places requests on replicas."""

    def __init__(self, rule: RoutingRule, slack: int = DEFAULT_SLACK) -> None:
        self.fleet = Fleet()
        self.domains: Domains | None = None
        """None before the first replica has said how many experts the model has."""
        self._rule, self._slack = rule, slack
        self._shape = (0, 0)
        self._version = 0

    @property
    def lookahead(self) -> int:
        """Return how many waiting requests `pick` chooses among."""
        return self._rule.lookahead

    def job(self, prompt_ids: Sequence[int], label: str = "") -> Job:
        """Return what the rule is to know of a request."""
        if self.domains is None:
            return Job(prompt_ids, NOTHING_KNOWN, label)
        return Job(prompt_ids, self.domains.mixture(prompt_ids, label), label, self.domains.learned)

    def refresh(self, job: Job) -> Job:
        """Return the job as of now, if much was learned while it waited; else the job itself."""
        if self.domains is None or self.domains.learned - job.learned < REFRESH_AFTER:
            return job
        return self.job(job.prompt_ids, job.label)

    def publish(self, name: str, state: ReplicaState) -> None:
        """Take the state that a replica published."""
        if self.domains is None and state.keys:
            self.domains, self._shape = Domains(state.keys), (state.layers, state.experts)
        self.fleet.publish(name, state, NO_MEANS if self.domains is None else self.domains.means)

    def learn(self, prompt_ids: Sequence[int], routes: RoutedExperts, label: str = "") -> None:
        """Learn from the routing of a request that has ended; ignored if it does not fit the model."""
        layers, experts = self._shape
        if self.domains is None or routes.shape[1] != layers:
            return
        chosen = np.frombuffer(routes.data, dtype=routes.dtype).reshape(routes.shape).astype(np.int64)
        keys = (chosen + np.arange(layers)[:, None] * experts)[chosen < experts]
        self.domains.learn(prompt_ids, np.bincount(keys, minlength=layers * experts), label)
        if self.domains.version != self._version:
            self._forget_served(self.domains.version)

    def place(self, jobs: Sequence[Job], may_pass: bool = True) -> tuple[int, int] | None:
        """Return the index of the job that starts next and the index of its replica; None: none can start now.

        `jobs` wait in this order; the replica is chosen for the first. With `may_pass` another one may take it.
        """
        place = choose(self._rule, jobs[0], self.fleet, self._slack)
        if place is None:
            return None
        return (best_job(self._rule, jobs, self.fleet, place) if may_pass else 0), place

    def _forget_served(self, version: int) -> None:
        """Forget what replicas were sent: domains were merged, so that their numbers mean something else."""
        self._version = version
        self.fleet.served[:] = 0


NO_MEANS = np.zeros((MAX_DOMAINS, 0), dtype=np.float32)
