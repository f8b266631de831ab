"""Eviction policies by name (`Config.policy`)."""

from __future__ import annotations

from collections.abc import Callable

from ....errors import UsageError
from .base import Policy
from .history_policies import LeastStale, Lfru, Lfu, Lru, Ring
from .popularity import Popularity
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
"""Name in the configuration -> constructor, which takes layers, experts and top-k."""


def make_policy(name: str, layers: int, experts: int, top_k: int) -> Policy:
    """Return a fresh policy. Raises UsageError for an unknown name."""
    if name not in POLICIES:
        raise UsageError(f"no policy '{name}'", "policy", f"Choose one of: {', '.join(POLICIES)}")
    return POLICIES[name](layers, experts, top_k)
