"""Side network of one modality: small experts beside a frozen encoder, mixed with its hidden states by a router."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

BOTTLENECK = 64
INIT_STD = 0.01
BACKBONE = 0
"""Output of the router that weighs the frozen encoder's own hidden state; expert j has output j + 1."""


@dataclass(frozen=True)
class ActiveExperts:
    """Choice of the experts that run: the `count` of largest weight for each item; 0: all, as published.

    The backbone costs nothing and always takes part. `renormalise`: the weights left are divided by their sum.
    """

    count: int = 0
    renormalise: bool = False

    def select(self, weights: Tensor) -> Tensor:
        """Return the weights, float [items, 1 + experts], with those of experts that do not run set to 0."""
        if not 0 < self.count < weights.shape[1] - 1:
            return weights
        least = weights[:, 1:].topk(self.count, dim=1).indices + 1
        kept = torch.zeros_like(weights).scatter(1, least, 1.0)
        kept[:, BACKBONE] = 1.0
        chosen = weights * kept
        return chosen / chosen.sum(1, keepdim=True) if self.renormalise else chosen


DENSE = ActiveExperts()


class SideExpert(nn.Module):
    """E(x) = x + W_up GELU(W_down x): two matrices without biases."""

    def __init__(self, width: int, bottleneck: int = BOTTLENECK) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck, bias=False)
        self.up = nn.Linear(bottleneck, width, bias=False)
        for matrix in (self.down, self.up):
            nn.init.normal_(matrix.weight, std=INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        """Return float [items, width] for x of the same shape."""
        return x + self.up(functional.gelu(self.down(x)))


class UsageMeter:
    """Sum over items of the L2 norm of each expert's weighted output; the trainer alone passes one."""

    def __init__(self, experts: int) -> None:
        self.norms = torch.zeros(experts)

    def add(self, expert: int, weighted: Tensor) -> None:
        """Count the weighted outputs of one expert, float [items, width]."""
        self.norms[expert] += weighted.detach().norm(dim=1).sum()

    def shares(self) -> Tensor:
        """Return float [experts]: the share of each expert in the sum of all; the backbone does not count."""
        return self.norms / self.norms.sum().clamp_min(1e-12)


class SideLayer(nn.Module):
    """One layer: x' = w_0 h + sum_j w_j E_j(x), where w = softmax(W x) and h is the encoder's hidden state."""

    def __init__(self, width: int, bottleneck: int = BOTTLENECK) -> None:
        super().__init__()
        self.width, self.bottleneck = width, bottleneck
        self.experts = nn.ModuleList([SideExpert(width, bottleneck)])
        self.router = nn.Linear(width, 2, bias=False)

    def weights(self, x: Tensor) -> Tensor:
        """Return float [items, 1 + experts], the weights of the backbone and of each expert; they add up to 1."""
        return self.router(x).softmax(dim=1)

    def forward(
        self, x: Tensor, hidden: Tensor, active: ActiveExperts = DENSE, meter: UsageMeter | None = None
    ) -> Tensor:
        """Return float [items, width]. `x`, and the encoder's `hidden` state, have the same shape.

        An expert runs for the items alone that chose it.
        """
        weights = active.select(self.weights(x))
        mixed = weights[:, BACKBONE, None] * hidden
        sparse = 0 < active.count < len(self.experts)
        for number, expert in enumerate(self.experts):
            weight = weights[:, number + 1]
            rows = weight.nonzero()[:, 0] if sparse else slice(None)
            weighted = weight[rows, None] * expert(x[rows])
            mixed = mixed.index_add(0, rows, weighted) if isinstance(rows, Tensor) else mixed + weighted
            if meter is not None:
                meter.add(number, weighted)
        return mixed


class SideNetwork(nn.Module):
    """Side layers of one modality, one for each chosen layer of the encoder."""

    def __init__(self, width: int, layers: int, bottleneck: int = BOTTLENECK) -> None:
        super().__init__()
        self._list = nn.ModuleList(SideLayer(width, bottleneck) for _ in range(layers))

    @property
    def layers(self) -> list[SideLayer]:
        """Return the side layers in the order in which they run."""
        return [cast(SideLayer, layer) for layer in self._list]

    def forward(self, states: Tensor, active: ActiveExperts = DENSE, meters: list[UsageMeter] | None = None) -> Tensor:
        """Return float [items, width] of the encoder's states, float [1 + layers, items, width]: first its input."""
        x = states[0]
        for number, layer in enumerate(self.layers):
            x = layer(x, states[number + 1], active, None if meters is None else meters[number])
        return x
