"""Llama 4's attention temperature by true positions.

The library scales the queries of layers without rotary positions by how far they stand in the cache, padding included,
so that a padded row would get other logits. Here the same scale follows `position_ids`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def temper_by_position(model: nn.Module) -> None:
    """Replace the library's scale in every layer that has one; other models stay as they are."""
    for layer in model.modules():
        attention = getattr(layer, "self_attn", None)
        if getattr(attention, "attn_temperature_tuning", False) and not getattr(attention, "use_rope", True):
            _Temperature(layer, attention)


class _Temperature:
    """Of one layer: notes its positions, then scales what its query projection gives."""

    def __init__(self, layer: nn.Module, attention: Any) -> None:
        self._floor, self._slope = attention.floor_scale, attention.attn_scale
        self._positions = torch.zeros(1, 1)
        attention.attn_temperature_tuning = False
        layer.register_forward_pre_hook(self._note, with_kwargs=True)
        attention.q_proj.register_forward_hook(self._scale)

    def _note(self, layer: nn.Module, inputs: Any, options: dict[str, Any]) -> None:
        self._positions = options["position_ids"]

    def _scale(self, projection: nn.Module, inputs: Any, queries: torch.Tensor) -> torch.Tensor:
        """queries [rows, columns, heads * width]; the formula is that of `Llama4TextAttention`."""
        steps = torch.floor((self._positions.float() + 1.0) / self._floor)
        scales = torch.log1p(steps) * self._slope + 1.0
        return (queries * scales[..., None]).to(queries.dtype)
