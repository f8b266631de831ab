"""Experts that the library keeps as dense modules of their own: `expert_0`, `expert_1`, …"""

from __future__ import annotations

import torch

from .base import OutsideExperts


class SeparateExperts(OutsideExperts):
    """In front of a dict of dense modules, of which `names` are the parameters."""

    num_experts: int
    names: tuple[str, ...] = ()

    def expert_parameters(self) -> dict[str, torch.Tensor]:
        own = dict(self.named_parameters())
        return {
            name: torch.stack([own[each] for each in stored])
            for name, stored in self.stored_separately().items()
            if stored[0] in own
        }

    def stored_separately(self) -> dict[str, list[str]]:
        return {name: [f"expert_{number}.{name}" for number in range(self.num_experts)] for name in self.names}

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self.run_routed(hidden, index, weights)


def real_tokens(experts: object) -> torch.Tensor | None:
    """bool [positions] of the forward that runs over slots: which are tokens; None if all are, or nobody knows."""
    layer = getattr(experts, "expertflow_layer", None)
    return None if layer is None else layer.real_tokens()
