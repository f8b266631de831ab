"""Eviction policies: how soon an expert will be used again, judged by how it was used so far. One policy a file."""

from .base import Policy
from .registry import POLICIES, make_policy

__all__ = ["POLICIES", "Policy", "make_policy"]
