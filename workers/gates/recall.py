"""How much of what a layer chose is among the experts that were named for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from .examples import Examples

Ranker = Callable[[int, torch.Tensor, int], np.ndarray | None]
"""As `Gates.ranking`: (layer, hidden [tokens, width], depth) -> [tokens, depth]."""
TOKENS_AT_ONCE = 4096


def recall_at(examples: Examples, ranking: Ranker, depths: Sequence[int]) -> np.ndarray:
    """float64 [L - 1, depths]: for MoE layers 1 to L - 1, the share of chosen experts among the first `depth` named."""
    found = np.zeros((examples.routes.shape[1] - 1, max(depths)))
    for start in range(0, len(examples), TOKENS_AT_ONCE):
        piece = slice(start, start + TOKENS_AT_ONCE)
        for gate in range(len(found)):
            named = ranking(gate, examples.states[piece, gate].float(), max(depths))
            if named is not None:
                chosen = examples.routes[piece, gate + 1].numpy()
                found[gate] += (named[:, :, None] == chosen[:, None, :]).any(axis=2).sum(axis=0)
    shares = found.cumsum(axis=1) / max(examples.routes[:, 0].numel(), 1)
    return shares[:, [depth - 1 for depth in depths]]
