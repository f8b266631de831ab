"""Switch Transformers: one expert a token, chosen by a router with a capacity that counts the tokens of a sequence.

The library lets padding use up capacity; here only tokens do. Its decoder gets one token of a sequence at a time and
never reaches a capacity. So no token of the decoder is dropped, also when many are computed again at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, one_hot, softmax

from .base import DECODER, stack_of
from .separate_experts import SeparateExperts, real_tokens


class SwitchExperts(SeparateExperts):
    """Adapter of `SwitchTransformersExperts`."""

    top_k = 1
    names = ("wi.weight", "wo.weight")

    def run_expert(self, weights: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """Compute one expert on its rows [n, width]: two linear maps without bias around an activation."""
        act: Any = self.get_submodule("expert_0.act")
        return linear(act(linear(rows, weights["wi.weight"])), weights["wo.weight"])


class SwitchBlock(nn.Module):
    """Adapter of `SwitchTransformersSparseMLP`."""

    path: str
    router: Any
    experts: Any

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the block's output for `hidden` [rows, columns, width]; a dropped token gets zeros."""
        _, _, logits = self.router(hidden)
        probabilities = softmax(logits, dim=-1, dtype=self.router.dtype).to(hidden.dtype)
        weights, index = probabilities.max(dim=-1)
        if stack_of(self.path) != DECODER:
            weights = weights * self._within_capacity(index)
        flat = hidden.reshape(-1, hidden.shape[-1])
        return self.experts(flat, index.reshape(-1, 1), weights.reshape(-1, 1)).view(hidden.shape)

    def _within_capacity(self, index: torch.Tensor) -> torch.Tensor:
        """Return bool [rows, columns]: the first tokens of a row that chose an expert, as many as it takes."""
        tokens = one_hot(index, self.router.num_experts)
        real = self._real()
        if real is not None:
            tokens = tokens * real.view(*index.shape, 1)
        rank = tokens.cumsum(dim=-2).gather(-1, index.unsqueeze(-1)).squeeze(-1)
        return rank <= self.router.expert_capacity

    def _real(self) -> torch.Tensor | None:
        return real_tokens(self.experts)
