"""The router: learns what prompts use, knows what replicas hold, and places requests by a rule. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....ipc.messages import RoutedExperts
from .fleet import Fleet, ReplicaState
from .forecasts import FEATURES, Forecasts
from .rules import DEFAULT_SLACK, Job, RoutingRule, choose

MAX_PASSED = 16
"""Number of times that a waiting request may be passed over by one that fits a replica better."""
REFRESH_AFTER = 16
"""Requests learned from after which a waiting request is judged anew."""
NOTHING_KNOWN = np.zeros(FEATURES, dtype=np.float32)


class Router:
    """Places requests on replicas."""

    def __init__(self, rule: RoutingRule, slack: int = DEFAULT_SLACK) -> None:
        self.fleet = Fleet()
        self.forecasts: Forecasts | None = None
        """None before the first replica has said how many experts the model has."""
        self._rule, self._slack = rule, slack
        self._shape = (0, 0)

    @property
    def lookahead(self) -> int:
        """Return how many waiting requests `pick` chooses among."""
        return self._rule.lookahead

    def job(self, prompt_ids: Sequence[int], label: str = "") -> Job:
        """Return what the rule is to know of a request."""
        if self.forecasts is None:
            return Job(prompt_ids, NOTHING_KNOWN, label)
        return Job(prompt_ids, self.forecasts.forecast(prompt_ids, label), label, self.forecasts.learned)

    def refresh(self, job: Job) -> Job:
        """Return the job as of now, if much was learned while it waited; else the job itself."""
        if self.forecasts is None or self.forecasts.learned - job.learned < REFRESH_AFTER:
            return job
        return self.job(job.prompt_ids, job.label)

    def publish(self, name: str, state: ReplicaState) -> None:
        """Take the state that a replica published; ignored if the replica is gone."""
        if name not in self.fleet:
            return
        if self.forecasts is None and state.keys:
            self.forecasts, self._shape = Forecasts(state.keys), (state.layers, state.experts)
        self.fleet.publish(name, state, self.forecasts)

    def learn(self, token_ids: Sequence[int], routes: RoutedExperts, label: str = "") -> None:
        """Learn from the routing of a request that has ended, prompt and output; ignored if of another model."""
        layers, experts = self._shape
        if self.forecasts is None or routes.shape[1] != layers:
            return
        chosen = np.frombuffer(routes.data, dtype=routes.dtype).reshape(routes.shape).astype(np.int64)
        keys = np.where(chosen < experts, chosen + np.arange(layers)[:, None] * experts, -1)
        self.forecasts.learn(token_ids, keys.reshape(len(keys), -1), label)

    def place(self, jobs: Sequence[Job], may_pass: bool = True) -> tuple[int, int] | None:
        """Return the index of the job that starts next and the index of its replica; None: none can start now.

        `jobs` wait in this order; without `may_pass` the first one starts.
        """
        return choose(self._rule, jobs if may_pass else jobs[:1], self.fleet, self._slack)
