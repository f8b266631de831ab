"""Routers that look at more than a token's hidden state: at its modality, or at its identity alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

_PRIME = 1_000_003


class TokenContext:
    """Knows the tokens of the forward that runs: their ids, and which are positions of an image."""

    def __init__(self, model: nn.Module) -> None:
        self.ids = torch.empty(0, dtype=torch.long)
        self.of_images = torch.empty(0, dtype=torch.bool)
        inner: Any = getattr(model, "model", model)
        inner.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        self.ids = named["input_ids"].flatten()
        types = named.get("mm_token_type_ids")
        self.of_images = torch.zeros_like(self.ids).bool() if types is None else types.flatten().bool()


class ModalityRouter(nn.Module):
    """Chooses among the first half of the experts for text and the second half for images."""

    def __init__(self, context: TokenContext, learned: Any) -> None:
        super().__init__()
        self._context = context
        self.top_k, self.num_experts = learned.top_k, learned.num_experts
        self.weight = learned.weight

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits [tokens, experts] (-inf outside the half), weights and choices [tokens, k]."""
        hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits = functional.linear(hidden, self.weight)
        second_half = torch.arange(self.num_experts) >= self.num_experts // 2
        logits = logits.masked_fill(self._context.of_images[:, None] != second_half, float("-inf"))
        weights, chosen = logits.softmax(-1).topk(self.top_k, dim=-1)
        return logits, weights / weights.sum(-1, keepdim=True), chosen


class HashRouter(nn.Module):
    """Chooses experts by a hash of the token's id, and of its place in the image for an image's positions."""

    def __init__(self, context: TokenContext, learned: Any, layer: int) -> None:
        super().__init__()
        self._context = context
        self.top_k, self.num_experts = learned.top_k, learned.num_experts
        generator = torch.Generator().manual_seed(_PRIME + layer)
        draws = torch.rand(_TABLE, self.num_experts, generator=generator)
        self.table = nn.Buffer(draws.topk(self.top_k, dim=-1).indices, persistent=False)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits [tokens, experts] (0 for chosen experts, else -inf), even weights and choices [tokens, k]."""
        chosen = self.table[token_keys(self._context)]
        none = torch.full((len(chosen), self.num_experts), float("-inf"))
        weights = torch.full(chosen.shape, 1 / self.top_k, dtype=hidden_states.dtype)
        return none.scatter(1, chosen, 0.0), weights, chosen


_TABLE = 1024
"""Entries of the table: ids of text below its half, places in an image above."""


def token_keys(context: TokenContext) -> torch.Tensor:
    """Return int64 [tokens], the table's entry of each token; a place is counted from the image's first position."""
    places = context.of_images.long().cumsum(0)
    starts = context.of_images & ~functional.pad(context.of_images[:-1], (1, 0))
    before = torch.where(starts, places - 1, 0).cummax(0).values
    inside = places - 1 - before
    return torch.where(context.of_images, _TABLE // 2 + inside % (_TABLE // 2), context.ids % (_TABLE // 2))
