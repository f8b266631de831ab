"""What gates learn from: what went into a layer, and what the next layer chose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..traces.reading import HiddenStates
from ..traces.trace import Trace


@dataclass(frozen=True)
class Examples:
    """M tokens of a model with L MoE layers."""

    states: torch.Tensor
    """float16 [M, L, width]: what went into each layer."""
    routes: torch.Tensor
    """int64 [M, L, top_k]: what each layer chose."""

    def __len__(self) -> int:
        return len(self.states)

    def inputs(self, places: torch.Tensor) -> torch.Tensor:
        """float32 [L - 1, tokens, width] for the gates."""
        return self.states[places, :-1].transpose(0, 1).float()

    def targets(self, places: torch.Tensor) -> torch.Tensor:
        """int64 [L - 1, tokens, top_k]: what the layers behind the gates chose."""
        return self.routes[places, 1:].transpose(0, 1)


def split_examples(trace: Trace, hidden: HiddenStates, shares: tuple[float, ...], seed: int = 0) -> list[Examples]:
    """Examples of whole sequences, dealt out at random: one part for each share, and what remains."""
    dealt = np.random.default_rng(seed).permutation(trace.sequences)
    cuts = np.rint(np.cumsum(shares) * trace.sequences).astype(int)
    part_of = np.empty(trace.sequences, dtype=np.int64)
    for number, sequences in enumerate(np.split(dealt, cuts)):
        part_of[sequences] = number
    part = part_of[np.searchsorted(trace.offsets, hidden.tokens, side="right") - 1]
    return [_examples(trace, hidden, part == number) for number in range(len(shares) + 1)]


def _examples(trace: Trace, hidden: HiddenStates, chosen: np.ndarray) -> Examples:
    routes = trace.routes[hidden.tokens[chosen]].astype(np.int64)
    return Examples(torch.from_numpy(hidden.states[chosen]), torch.from_numpy(routes))
