"""Eviction policies: they estimate how soon an expert will be used again from how it was used so far."""

from .base import Policy
from .registry import POLICIES, make_policy

__all__ = ["POLICIES", "Policy", "make_policy"]
