"""XSMoE whole: item vectors from side networks, user vectors from a small causal transformer, their dot product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .side import DENSE, ActiveExperts, SideLayer, SideNetwork, UsageMeter

HISTORY = 10
"""Items of a user that the encoder reads at most."""
NO_ITEM = -1
"""Padding of a sequence of items, behind the last one."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the model; those of the paper but for the width of a hidden state, which is the encoder's."""

    width: int = 768
    side_layers: int = 2
    modalities: int = 2
    bottleneck: int = 64
    dim: int = 128
    inner: int = 512
    heads: int = 2
    blocks: int = 2
    dropout: float = 0.1


class UserEncoder(nn.Module):
    """Two post-norm transformer blocks over at most HISTORY item vectors, causal, with learned positions."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(sizes.dim, sizes.heads, sizes.inner, sizes.dropout, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, sizes.blocks, enable_nested_tensor=False)
        self.positions = nn.Embedding(HISTORY, sizes.dim)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return float [users, items, dim], the user after each item, of item vectors of that shape."""
        length = vectors.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=vectors.device).triu(1)
        x = self.dropout(vectors + self.positions.weight[:length])
        return self.blocks(x, mask=mask)


class Recommender(nn.Module):
    """Items and users in one space. There are no item ids: an item is its frozen hidden states."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        sides = [SideNetwork(sizes.width, sizes.side_layers, sizes.bottleneck) for _ in range(sizes.modalities)]
        self.sides = nn.ModuleList(sides)
        self.join = nn.Linear(sizes.modalities * sizes.width, sizes.dim)
        self.users = UserEncoder(sizes)

    def side_layers(self) -> list[SideLayer]:
        """Return all side layers: those of the first modality, then those of the next."""
        return [layer for side in self.sides for layer in cast(SideNetwork, side).layers]

    def encode_items(
        self, states: Tensor, active: ActiveExperts = DENSE, meters: list[UsageMeter] | None = None
    ) -> Tensor:
        """Return float [items, dim] of hidden states, float [modalities, 1 + layers, items, width]."""
        count = self.sizes.side_layers
        ends = [
            side(states[number], active, None if meters is None else meters[number * count : (number + 1) * count])
            for number, side in enumerate(self.sides)
        ]
        return self.join(torch.cat(ends, dim=1))

    def encode_users(self, item_vectors: Tensor, histories: Tensor) -> Tensor:
        """Return float [users, dim] after the last item of each of `histories`, int64 [users, HISTORY], NO_ITEM behind.

        `item_vectors`, float [items, dim], are indexed by the histories.
        """
        after = self.users(item_vectors[histories.clamp_min(0)])
        last = (histories != NO_ITEM).sum(1) - 1
        return after[torch.arange(len(after), device=after.device), last]
