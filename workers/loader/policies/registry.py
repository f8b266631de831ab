"""From the name of a policy (`Config.policy`) to the policy."""

from __future__ import annotations

from collections.abc import Callable

from ....errors import UsageError
from .base import Policy
from .least_stale import LeastStale
from .lfru import Lfru
from .lfu import Lfu
from .lru import Lru
from .popularity import Popularity
from .ring import Ring
from .static import Static

POLICIES: dict[str, Callable[[int, int, int], Policy]] = {
    "popularity": Popularity,
    "lru": Lru,
    "lfu": Lfu,
    "lfru": Lfru,
    "least-stale": LeastStale,
    "static": Static,
    "ring": Ring,
}
"""By the name in the configuration; made with layers, experts and top-k."""


def make_policy(name: str, layers: int, experts: int, top_k: int) -> Policy:
    """A fresh policy. Raises UsageError for an unknown name."""
    if name not in POLICIES:
        raise UsageError(f"no policy '{name}'", "policy", f"Choose one of: {', '.join(POLICIES)}")
    return POLICIES[name](layers, experts, top_k)
