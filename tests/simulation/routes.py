"""The routing of the model that does not exist: a function of the token alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from expertflow.tests.simulation.plan import Plan


def routes_of(plan: Plan, token_ids: Sequence[int]) -> np.ndarray:
    """Return the experts of tokens, uint16 [tokens, layers, top_k], distinct within a layer."""
    tokens = np.asarray(token_ids, np.int64)[:, None, None]
    layers, choices = np.arange(plan.layers)[:, None], np.arange(plan.top_k)
    return ((tokens * 7 + tokens // 5 + layers * 3 + choices) % plan.experts).astype("<u2")
