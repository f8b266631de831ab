"""Ernie 4.5 VL: a MoE block has two routers with experts of two sizes, one for text and one for images.

The rest of the package sees one layer: its text experts come first, those of images after them, as in published
checkpoints. So every token has one choice in it, whichever router made it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear

from .base import OutsideExperts

_PARTS = ("text_moe", "vision_moe")
_NAMES = ("gate_up_proj", "down_proj")


class ErnieVlBlock(OutsideExperts):
    """Adapter of `Ernie4_5_VLMoeMoeBlock`."""

    num_experts: int
    """Experts of each kind."""
    text_moe: Any
    vision_moe: Any
    shared_experts: Any
    is_block = True

    def expert_parameters(self) -> dict[str, torch.Tensor]:
        """Return both kinds' parameters, each [experts of the kind, out, in]."""
        own = {f"{part}.experts.{name}": (getattr(self, part).experts, name) for part in _PARTS for name in _NAMES}
        return {path: getattr(experts, name) for path, (experts, name) in own.items() if hasattr(experts, name)}

    def expert_kinds(self) -> list[list[str]]:
        return [[f"{part}.experts.{name}" for name in _NAMES] for part in _PARTS]

    def run_expert(self, weights: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """Compute one expert of either kind on its rows [n, width]: both compute the same."""
        gate_up, down = weights.values()
        return linear(self.text_moe.experts._apply_gate(linear(rows, gate_up)), down)

    def forward(
        self, hidden: torch.Tensor, moe_mm_token_type_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the block's output for `hidden` [rows, columns, width], and the text router's scores.

        `moe_mm_token_type_ids` [rows, columns]: 0 for text.
        """
        flat = hidden.reshape(-1, hidden.shape[-1])
        scores, weights, index = self.text_moe.gate(flat)
        if moe_mm_token_type_ids is not None:
            shown = moe_mm_token_type_ids.reshape(-1).bool()
            _, weights[shown], index_shown = self.vision_moe.gate(flat[shown])
            index[shown] = index_shown + self.num_experts
        out = self.run_routed(flat, index, weights).view(hidden.shape)
        return out if self.shared_experts is None else out + self.shared_experts(hidden), scores
