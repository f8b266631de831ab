"""One product for many experts: rows in groups, each multiplied by the weights in its expert's slot."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...kernels.products import padded_rows, project


class SlotMatrix(NamedTuple):
    """One matrix of every slot, at the same offset in each; counts are items, not bytes."""

    memory: Tensor
    """All slots, [slots * stride]."""
    stride: int
    start: int
    shape: tuple[int, int]
    """[out, in], or [in, out] if it is `transposed`."""
    transposed: bool = False
    bias_start: int = -1
    """Offset of the bias [out] in a slot; negative if there is none."""

    @property
    def out(self) -> int:
        return self.shape[1 if self.transposed else 0]


class Groups(NamedTuple):
    """Group i is the rows `starts[i]` to `ends[i]`, which go through the expert in slot `slots[i]`."""

    table: Tensor
    """int64 [3, groups] on the device: slots, starts, ends."""
    rows: int
    """Upper bound of the rows in all groups: the host may not know the exact number."""
    layer_rows: int
    """Rows of all of the layer's experts. A kernel may choose its shape from this number alone: no bit may depend on
    which experts are launched together (I1a)."""


class GroupedProduct(Protocol):
    """rows [n, in] -> out [m, out]: each group's rows times its expert's weights; other rows of `out` stay unchanged.

    Row r of the groups is row r - `first` of `rows`, and row r of `out`.
    """

    def __call__(self, rows: Tensor, weights: SlotMatrix, groups: Groups, out: Tensor, first: int = 0) -> None: ...


def group_routes(index: Tensor, slots: Tensor) -> tuple[Tensor, Tensor, Groups]:
    """Group the rows of a layer by expert, on the device: the host reads nothing back and does not wait.

    `index` is int64 [tokens, top-k], `slots` int64 [experts]. Returns the pair of each row, the row of each pair (both
    int64 [tokens * top-k]), and one group for each expert.
    """
    ordered, pair_of_row = index.reshape(-1).sort(stable=True)
    experts = torch.arange(len(slots), device=index.device)
    starts = torch.searchsorted(ordered, experts)
    ends = torch.searchsorted(ordered, experts, right=True)
    rows = torch.arange(len(pair_of_row), device=index.device)
    row_of_pair = torch.empty_like(pair_of_row).scatter_(0, pair_of_row, rows)
    return pair_of_row, row_of_pair, Groups(torch.stack([slots, starts, ends]), len(rows), len(rows))


def plain_product(rows: Tensor, weights: SlotMatrix, groups: Groups, out: Tensor, first: int = 0) -> None:
    """Compute a `GroupedProduct`, rows [n, in] to out [m, out], expert by expert, as a CPU does.

    The kernel of a GPU must agree with it. Reads the groups back from the device, so it suits devices that are the CPU.
    """
    for slot, start, end in groups.table.t().tolist():
        if end > start:
            out[start:end] = _multiply(rows[start - first : end - first], weights, slot)


def _multiply(rows: Tensor, weights: SlotMatrix, slot: int) -> Tensor:
    """Pad the rows as `rows_by_expert` does: kernels for other row counts round differently."""
    base = slot * weights.stride
    size = weights.shape[0] * weights.shape[1]
    weight = weights.memory[base + weights.start :][:size].view(weights.shape)
    bias = weights.memory[base + weights.bias_start :][: weights.out] if weights.bias_start >= 0 else None
    padded = pad(rows, (0, 0, 0, padded_rows(len(rows)) - len(rows)))
    return project(padded, weight.t() if weights.transposed else weight, bias)[: len(rows)]
