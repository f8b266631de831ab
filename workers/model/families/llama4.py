"""Llama 4: the router's score multiplies the input of an expert, and the library runs all experts on all tokens.

Its attention scales the queries of layers without rotary positions by their place in the cache, padding included. A
padded row would get other logits. `temper_by_position` applies the same scale by `position_ids`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .base import OutsideExperts


class Llama4Experts(OutsideExperts):
    """Adapter of `Llama4TextExperts`."""

    gate_up_proj: torch.Tensor
    down_proj: torch.Tensor
    act_fn: Any
    weighs_input = True

    def expert_parameters(self) -> dict[str, torch.Tensor]:
        """Return both projections, each [experts, in, out]."""
        return {"gate_up_proj": self.gate_up_proj, "down_proj": self.down_proj}

    def run_expert(self, weights: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """Compute one expert on its rows [n, width], which the router's scores have multiplied."""
        gate, up = (rows @ weights["gate_up_proj"]).chunk(2, dim=-1)
        return (up * self.act_fn(gate)) @ weights["down_proj"]

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the routed experts' sum [tokens, width] for `hidden` [tokens, width], as `run_routed`."""
        return self.run_routed(hidden, index, weights)


class Llama4Block(nn.Module):
    """Adapter of `Llama4TextMoe`: an expert gets the tokens that chose it; in the library it gets all."""

    experts: Llama4Experts
    router: Any
    shared_expert: Any
    hidden_dim: int
    top_k: int

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the block's output [tokens, width] for `hidden` [rows, columns, width], and the router's logits.

        The logits are [tokens, experts].
        """
        hidden = hidden.reshape(-1, self.hidden_dim)
        scores, logits = self.router(hidden)
        index = logits.topk(self.top_k, dim=1).indices
        routed = self.experts(hidden, index, scores.gather(1, index))
        return self.shared_expert(hidden).add_(routed), logits


def temper_by_position(model: nn.Module) -> None:
    """Replace the library's attention temperature in every layer that has one; other models stay as they are."""
    for layer in model.modules():
        attention = getattr(layer, "self_attn", None)
        if getattr(attention, "attn_temperature_tuning", False) and not getattr(attention, "use_rope", True):
            _Temperature(layer, attention)


class _Temperature:
    """Attention temperature of one layer: notes its positions, then scales the output of its query projection."""

    def __init__(self, layer: nn.Module, attention: Any) -> None:
        self._floor, self._slope = attention.floor_scale, attention.attn_scale
        self._positions = torch.zeros(1, 1)
        attention.attn_temperature_tuning = False
        layer.register_forward_pre_hook(self._note, with_kwargs=True)
        attention.q_proj.register_forward_hook(self._scale)

    def _note(self, layer: nn.Module, inputs: Any, options: dict[str, Any]) -> None:
        self._positions = options["position_ids"]

    def _scale(self, projection: nn.Module, inputs: Any, queries: torch.Tensor) -> torch.Tensor:
        """Scale queries [rows, columns, heads * width] by the formula of `Llama4TextAttention`."""
        steps = torch.floor((self._positions.float() + 1.0) / self._floor)
        scales = torch.log1p(steps) * self._slope + 1.0
        return (queries * scales[..., None]).to(queries.dtype)
