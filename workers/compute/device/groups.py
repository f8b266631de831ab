"""Rows by expert and the slots their experts lie in, as one grouped product takes them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class SlotMatrix(NamedTuple):
    """One matrix of every slot, at the same place in each; counts are of items, not of bytes."""

    memory: Tensor
    """All slots, [slots * stride]."""
    stride: int
    start: int
    shape: tuple[int, int]
    """[out, in], or [in, out] if it is `transposed`."""
    transposed: bool = False
    bias_start: int = -1
    """Of the bias [out] in a slot; negative: there is none."""

    @property
    def out(self) -> int:
        return self.shape[1 if self.transposed else 0]


class Groups(NamedTuple):
    """Group i is the rows `starts[i]` to `ends[i]`, which go through the expert in slot `slots[i]`."""

    table: Tensor
    """int64 [3, groups] on the device: slots, starts, ends."""
    rows: int
    """Of all groups, at most: the host may not know how many there are."""
    layer_rows: int
    """Of the whole layer. From this and nothing else a kernel may choose its shape: no bit may depend on which experts
    are launched together (I1a)."""


class GroupedProduct(Protocol):
    """rows [n, in] -> out [m, out]: each group's rows times its expert's weights, other rows of `out` as they were.

    Row r of the groups is row r - `first` of `rows`, and row r of `out`.
    """

    def __call__(self, rows: Tensor, weights: SlotMatrix, groups: Groups, out: Tensor, first: int = 0) -> None: ...


def group_routes(index: Tensor, slots: Tensor) -> tuple[Tensor, Tensor, Groups]:
    """Routes [tokens, top-k] -> the pair in each row, the row of each pair, and a group for each expert in `slots`.

    All of it on the device: the host is told nothing and waits for nothing.
    """
    ordered, pairs = index.reshape(-1).sort(stable=True)
    experts = torch.arange(len(slots), device=index.device)
    starts = torch.searchsorted(ordered, experts)
    ends = torch.searchsorted(ordered, experts, right=True)
    places = torch.empty_like(pairs).scatter_(0, pairs, torch.arange(len(pairs), device=index.device))
    return pairs, places, Groups(torch.stack([slots, starts, ends]), len(pairs), len(pairs))
