"""Base of adapters for experts that the library keeps as separate dense modules: `expert_0`, `expert_1`, …"""

from __future__ import annotations

import torch

from .base import OutsideExperts


class SeparateExperts(OutsideExperts):
    """Adapter of a dict of dense modules whose parameters are `names`."""

    num_experts: int
    names: tuple[str, ...] = ()

    def expert_parameters(self) -> dict[str, torch.Tensor]:
        """Return the modules' parameters stacked, each [experts, ...]."""
        own = dict(self.named_parameters())
        return {
            name: torch.stack([own[path] for path in stored])
            for name, stored in self.stored_separately().items()
            if stored[0] in own
        }

    def stored_separately(self) -> dict[str, list[str]]:
        return {name: [f"expert_{number}.{name}" for number in range(self.num_experts)] for name in self.names}

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the routed experts' sum [tokens, width] for `hidden` [tokens, width], as `run_routed`."""
        return self.run_routed(hidden, index, weights)


def real_tokens(experts: object) -> torch.Tensor | None:
    """Return bool [positions], true for tokens, of the forward that runs over slots; None if all are, or unknown."""
    layer = getattr(experts, "expertflow_layer", None)
    return None if layer is None else layer.real_tokens()
