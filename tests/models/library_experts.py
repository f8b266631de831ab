"""The library's own experts, called with hidden states, routes and weights whatever their interface is."""

from __future__ import annotations

from typing import Any

import torch
from expertflow.workers.model.architecture import experts_modules
from torch import nn


def library_experts(model: nn.Module) -> list[nn.Module]:
    """Of every MoE layer of an untouched model, in order."""
    outside = [_WRAPPERS[type(each).__name__](each) for each in model.modules() if type(each).__name__ in _WRAPPERS]
    return outside or [module for _, module in experts_modules(model)]


class _Llama4(nn.Module):
    """Its experts get every token, scaled by the score, which is zero for those that were not chosen."""

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        scores = weights.new_zeros(len(hidden), self.experts.num_experts).scatter(1, index, weights)
        scaled = hidden.repeat(self.experts.num_experts, 1) * scores.t().reshape(-1, 1)
        return self.experts(scaled).view(self.experts.num_experts, *hidden.shape).sum(dim=0)


class _Dbrx(nn.Module):
    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self.experts(hidden, index, weights).view(hidden.shape)


class _Gating(nn.Module):
    """Stands in for JetMoE's router: a choice already made, in the form that its block asks for."""

    def __init__(self, index: torch.Tensor, weights: torch.Tensor, experts: int) -> None:
        super().__init__()
        order = index.flatten().argsort(stable=True)
        sizes = index.flatten().bincount(minlength=experts).tolist()
        self.choice = (order, order // index.shape[1], weights.flatten()[order], sizes, None)

    def forward(self, hidden: torch.Tensor) -> tuple[Any, ...]:
        return self.choice


class _JetMoe(nn.Module):
    """The whole block without its bias."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        self.count = block.input_linear.num_experts
        with torch.no_grad():
            block.bias.zero_()

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        self.block.router = _Gating(index, weights, self.count)
        return self.block(hidden[None])[0]


_WRAPPERS: dict[str, type[Any]] = {"Llama4TextExperts": _Llama4, "DbrxExperts": _Dbrx, "JetMoeMoE": _JetMoe}
