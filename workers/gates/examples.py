"""Training examples of gates: the input of a layer, and the experts that the next layer chose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..traces.reading import HiddenStates
from ..traces.trace import Trace


@dataclass(frozen=True)
class Examples:
    """Inputs and choices of L MoE layers for M tokens."""

    states: torch.Tensor
    """float16 [M, L, width]: input of each layer."""
    routes: torch.Tensor
    """int64 [M, L, top_k]: experts that each layer chose."""

    def __len__(self) -> int:
        return len(self.states)

    def inputs(self, indices: torch.Tensor) -> torch.Tensor:
        """Return float32 [L - 1, tokens, width]: inputs of the gates for these tokens."""
        return self.states[indices, :-1].transpose(0, 1).float()

    def targets(self, indices: torch.Tensor) -> torch.Tensor:
        """Return int64 [L - 1, tokens, top_k]: experts that the layers behind the gates chose."""
        return self.routes[indices, 1:].transpose(0, 1)


def split_examples(trace: Trace, hidden: HiddenStates, shares: tuple[float, ...], seed: int = 0) -> list[Examples]:
    """Return random disjoint parts of whole sequences: one for each share, and the rest."""
    order = np.random.default_rng(seed).permutation(trace.sequences)
    cuts = np.rint(np.cumsum(shares) * trace.sequences).astype(int)
    part_of = np.empty(trace.sequences, dtype=np.int64)
    for number, sequences in enumerate(np.split(order, cuts)):
        part_of[sequences] = number
    part = part_of[np.searchsorted(trace.offsets, hidden.tokens, side="right") - 1]
    return [_examples(trace, hidden, part == number) for number in range(len(shares) + 1)]


def _examples(trace: Trace, hidden: HiddenStates, chosen: np.ndarray) -> Examples:
    routes = trace.routes[hidden.tokens[chosen]].astype(np.int64)
    return Examples(torch.from_numpy(hidden.states[chosen]), torch.from_numpy(routes))
