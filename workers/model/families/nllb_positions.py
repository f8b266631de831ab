"""Sinusoidal positions of NLLB's decoder by its attention mask.

The library counts from how far the cache reaches, padding included, so that a row padded on the left would stand
elsewhere. One token at a time and unpadded, a token's position is the number of tokens before it: here it always is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .stacks import DECODER

_EMBEDDING = "NllbMoeSinusoidalPositionalEmbedding"


def count_by_mask(model: nn.Module) -> None:
    """Replace how the decoder's positions are counted; other models stay as they are."""
    for path, module in model.named_modules():
        embedding = getattr(module, "embed_positions", None)
        if path.endswith(DECODER) and type(embedding).__name__ == _EMBEDDING:
            _Positions(module, embedding)


class _Positions:
    """Of one decoder: notes its mask, then numbers its tokens."""

    def __init__(self, decoder: nn.Module, embedding: Any) -> None:
        self._mask: torch.Tensor | None = None
        self._library = embedding.create_position_ids_from_input_ids
        decoder.register_forward_pre_hook(self._note, with_kwargs=True)
        embedding.create_position_ids_from_input_ids = self._numbers

    def _note(self, decoder: nn.Module, inputs: Any, options: dict[str, Any]) -> None:
        self._mask = options.get("attention_mask")

    def _numbers(self, ids: torch.Tensor, padding_id: int, past: int = 0) -> torch.Tensor:
        """int64 [rows, columns], from padding_id + 1 on; the padding token itself has none, wherever it stands."""
        if self._mask is None:
            return self._library(ids, padding_id, past)
        here = self._mask[:, -ids.shape[1] :]
        return self._mask.cumsum(dim=1)[:, -ids.shape[1] :] * here * (ids != padding_id) + padding_id
