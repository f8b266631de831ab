"""The grouped product expert by expert, as a CPU computes it: what the kernel of a GPU must agree with."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from ..experts.expert_rows import padded_rows
from ..experts.projection import project
from .groups import Groups, SlotMatrix


def plain_product(rows: Tensor, weights: SlotMatrix, groups: Groups, out: Tensor, first: int = 0) -> None:
    """See `GroupedProduct`. It asks the device for the groups, so it is for devices that are the CPU."""
    for slot, start, end in groups.table.t().tolist():
        if end > start:
            out[start:end] = _one(rows[start - first : end - first], weights, slot)


def _one(rows: Tensor, weights: SlotMatrix, slot: int) -> Tensor:
    """As many rows as `rows_by_expert` would give it: kernels for other numbers round otherwise."""
    base = slot * weights.stride
    size = weights.shape[0] * weights.shape[1]
    weight = weights.memory[base + weights.start :][:size].view(weights.shape)
    bias = weights.memory[base + weights.bias_start :][: weights.out] if weights.bias_start >= 0 else None
    padded = pad(rows, (0, 0, 0, padded_rows(len(rows)) - len(rows)))
    return project(padded, weight.t() if weights.transposed else weight, bias)[: len(rows)]
