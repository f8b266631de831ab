"""Judges how far a deployment is, from the states of its replicas. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

ENGINES, FRONT = "Engines", "Front"
"""Names of the deployments in Ray Serve."""
RUNNING = "RUNNING"
CHANGING = {"UPDATING", "RECOVERING", "STOPPING"}
States = Mapping[str, int]
"""State of replicas -> how many are in it."""


class Deployed(NamedTuple):
    """Replicas of a deployment."""

    running: int
    wanted: int
    ready: bool
    """The front runs, and every replica that there is a host for."""

    @property
    def homeless(self) -> int:
        """Return how many replicas wait for a host."""
        return max(0, self.wanted - self.running)


def deployed_of(states: Mapping[str, States], wanted: int, hosts: int | None) -> Deployed:
    """Return how far a deployment is, from the states by name of its parts; `hosts` None: hosts limit nothing."""
    engines, front = states.get(ENGINES, {}), states.get(FRONT, {})
    running = engines.get(RUNNING, 0)
    due = wanted if hosts is None else min(wanted, hosts)
    changing = sum(engines.get(state, 0) for state in CHANGING)
    ready = running >= max(due, 1) and not changing and front.get(RUNNING, 0) > 0
    return Deployed(running, wanted, ready)


def first_error(messages: Iterable[str]) -> str:
    """Return the line in messages of Ray Serve that names an error: the last one of a traceback, else any."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    named = [line for line in lines if line.partition(":")[0].endswith("Error")]
    return (named or lines or ["nothing is known"])[-1]
