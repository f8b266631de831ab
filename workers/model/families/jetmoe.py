"""JetMoE: the MoE block holds its experts itself, as two layers of parallel linear maps.

Its attention has experts, too (a fifth of the published model's). They belong to the skeleton, as a token has one
choice a layer and attention needs them in two halves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from .base import OutsideExperts

_NAMES = ("input_linear", "output_linear")


class JetMoeBlock(OutsideExperts):
    """Adapter of `JetMoeMoE`."""

    activation: Any
    bias: torch.Tensor
    input_linear: Any
    output_linear: Any
    router: Any
    is_block = True

    def expert_parameters(self) -> dict[str, torch.Tensor]:
        """Return the weights of both maps, each [experts, out, in]."""
        own = {name: getattr(getattr(self, name), "weight", None) for name in _NAMES}
        return {f"{name}.weight": tensor for name, tensor in own.items() if tensor is not None}

    def run_expert(self, weights: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """Compute one expert on its rows [n, width]: a gated unit, [n, width]."""
        gate, up = linear(rows, weights["input_linear.weight"]).chunk(2, dim=-1)
        return linear(self.activation(gate) * up, weights["output_linear.weight"])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the block's output for `hidden` [rows, columns, width]. Chooses as `JetMoeTopKGating` does."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        chosen = self.router.layer(flat).float().topk(self.router.top_k, dim=1)
        weights = chosen.values.softmax(dim=1).type_as(flat)
        return self.run_routed(flat, chosen.indices, weights).view(hidden.shape) + self.bias


class JetMoeGating(nn.Module):
    """Adapter of `JetMoeTopKGating`, which counts the tokens of an expert: on the meta device, all go to the first."""

    top_k: int
    num_experts: int

    def forward(self, hidden: torch.Tensor) -> Any:
        """Return the library's routing of `hidden` [tokens, width].

        Sorted choices, their tokens and their weights, each [tokens * top-k]; counts, one an expert; logits
        [tokens, experts].
        """
        if not hidden.is_meta:
            return super().forward(hidden)  # pyright: ignore[reportAttributeAccessIssue]
        pairs = len(hidden) * self.top_k
        order = torch.zeros(pairs, dtype=torch.long, device="meta")
        sizes = [pairs, *[0] * (self.num_experts - 1)]
        return order, order, hidden.new_zeros(pairs), sizes, hidden.new_zeros(len(hidden), self.num_experts)
