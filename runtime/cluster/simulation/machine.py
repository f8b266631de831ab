"""Machine of every simulated replica, and what fails."""

from __future__ import annotations

import msgspec

from ....errors import UsageError
from .expert_cache import StepCounts


class ReplicaMachine(msgspec.Struct, frozen=True, kw_only=True):
    """Times and sizes of one replica."""

    batch_size: int = 8
    slots: int = 1
    """Expert slots of all layers together."""
    policy: str = "lru"
    expert_bytes: int = 1
    link_bytes_per_s: float = 1e9
    step_s: float = 0.01
    """Time of a step without loads."""
    token_s: float = 0.0
    """Additional time of each token of a step."""
    exposed: float = 1.0
    """Share of the loading time in which compute waits."""
    message_s: float = 0.001
    """Time of a message between gateway and replica."""
    publish_s: float = 1.0
    """Interval at which a replica publishes its state."""
    fails_after_s: float = 0.0
    """Mean time from a replica's start to its death, exponential; 0: none dies."""
    noticed_after_s: float = 1.0
    """Time from a death until the gateway knows."""
    repaired_after_s: float = 30.0
    """Time from a death until the replica is back, with empty slots."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "slots", "expert_bytes", "link_bytes_per_s", "step_s", "publish_s"):
            if getattr(self, name) <= 0:
                raise UsageError(f"must be above 0, not {getattr(self, name)}", name, "Give a positive number")

    def step_time_s(self, tokens: int, counts: StepCounts) -> float:
        """Return the time of a step."""
        loading_s = counts.loads * self.expert_bytes / self.link_bytes_per_s
        return self.step_s + tokens * self.token_s + self.exposed * loading_s
