"""Small traces and uses, made to measure."""

from __future__ import annotations

import numpy as np
from expertflow.runtime.replay.steps import Uses
from expertflow.workers.traces.trace import Trace


def uses_of_sets(steps: list[list[set[int]]], experts: int) -> Uses:
    """`steps[step][layer]` are the experts used."""
    keys = [sorted(layer * experts + each for layer, used in enumerate(step) for each in used) for step in steps]
    return Uses(
        layers=len(steps[0]),
        experts=experts,
        starts=np.cumsum([0, *map(len, keys)]),
        keys=np.array(sum(keys, []), dtype=np.int64),
        tokens=np.ones(len(steps), dtype=np.int64),
    )


def random_trace(seed: int, lengths: list[int], layers: int = 3, experts: int = 8, top_k: int = 2) -> Trace:
    """Skewed routes that depend on the token; 10 different tokens."""
    random = np.random.default_rng(seed)
    count = sum(lengths)
    token_ids = random.integers(0, 10, count)
    taste = random.gumbel(size=(10, layers, experts)) * 2
    noisy = taste[token_ids] + random.gumbel(size=(count, layers, experts))
    return Trace(
        routes=np.argsort(-noisy, axis=2)[:, :, :top_k].astype(np.uint16),
        token_ids=token_ids,
        offsets=np.cumsum([0, *lengths]),
        expert_count=experts,
    )
