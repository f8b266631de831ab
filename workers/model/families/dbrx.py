"""DBRX: the experts of a layer lie below each other in three matrices [experts * inner width, width]."""

from __future__ import annotations

from typing import Any

import torch

from .base import OutsideExperts

_NAMES = ("w1", "v1", "w2")


class DbrxExperts(OutsideExperts):
    """Adapter of the library's `DbrxExperts`."""

    mlp: Any
    num_experts: int
    hidden_size: int
    ffn_hidden_size: int

    def expert_parameters(self) -> dict[str, torch.Tensor]:
        """Return w1, v1 and w2 as views [experts, inner width, width]."""
        own = {name: getattr(self.mlp, name, None) for name in _NAMES}
        shape = (self.num_experts, self.ffn_hidden_size, self.hidden_size)
        return {f"mlp.{name}": tensor.view(shape) for name, tensor in own.items() if tensor is not None}

    def run_expert(self, weights: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """Compute one expert on its rows [n, width], by the library's own code."""
        return self.mlp(rows, *(weights[f"mlp.{name}"] for name in _NAMES))

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the output of the routed experts for `hidden` [rows, columns, width], in the same shape."""
        return self.run_routed(hidden.reshape(-1, self.hidden_size), index, weights).view(hidden.shape)
