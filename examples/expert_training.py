"""A faster training path for the routed experts on a CPU, and the loss that keeps them evenly used."""

from __future__ import annotations

import ctypes
from typing import Any, cast

import torch
import torch.nn.functional as functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

SORTED_EXPERTS = "sorted_training"
"""Name under which `register` makes the path known to the library (`config._experts_implementation`)."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def register() -> None:
    """Make `SORTED_EXPERTS` a known experts implementation; call before building the model."""
    ALL_EXPERTS_FUNCTIONS.register(SORTED_EXPERTS, _sorted_experts)


def keep_freed_memory() -> None:
    """Let the C library reuse large blocks: fresh pages for every big tensor cost a fifth of a training step."""
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def balance_loss(router_logits: tuple[torch.Tensor, ...], top_k: int) -> torch.Tensor:
    """Return Switch's balancing loss, averaged over layers; 1.0 when every layer's experts are used evenly.

    `router_logits` holds one [tokens, experts] tensor a layer. The library's own version pools the layers, so that one
    layer's favourite may hide another's.
    """
    return torch.stack([_layer_balance(logits, top_k) for logits in router_logits]).mean()


def _layer_balance(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    experts = logits.shape[-1]
    chosen = logits.topk(top_k, dim=-1).indices
    used_share = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
    return experts * (used_share * logits.softmax(dim=-1).mean(dim=0)).sum()


def _sorted_experts(experts: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Run all experts over [tokens, hidden] rows sorted by expert; `chosen` and `weights` are [tokens, k]."""
    tokens, top_k = chosen.shape
    order = chosen.flatten().argsort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel()))
    ends = torch.bincount(chosen.flatten(), minlength=experts.num_experts).cumsum(0).int()
    repeated = hidden.unsqueeze(1).expand(tokens, top_k, -1).reshape(tokens * top_k, -1)
    rows = _permuted(repeated, order, inverse)
    gate, up = functional.grouped_mm(rows, experts.gate_up_proj.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    rows = functional.grouped_mm(functional.silu(gate) * up, experts.down_proj.transpose(1, 2), offs=ends)
    rows = _permuted(rows, inverse, order).view(tokens, top_k, -1)
    return torch.bmm(weights.unsqueeze(1), rows).squeeze(1)


def _permuted(rows: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, _Permute.apply(rows, order, inverse))


class _Permute(torch.autograd.Function):
    """Reorder rows; the gradient is the inverse gather, far cheaper than the scatter that indexing would record."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradients[0].index_select(0, ctx.saved_tensors[0]), None, None
