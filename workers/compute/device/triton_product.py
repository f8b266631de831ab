"""The grouped product as one kernel that finds its weights by slot numbers. Imported only for a GPU."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from .grouped_product import Groups, SlotMatrix
from .triton_kernel import grouped_rows

MIN_ROWS, MAX_ROWS = 16, 128
"""Rows of a tile: the least that tensor cores take, and the most that still leaves enough programs."""
OUT = 64
"""Columns of a tile."""
TRIAL_SIZE = 64
"""Rows and columns of the matrices that the kernel is tried with."""


class TritonProduct:
    """A `GroupedProduct` for layers of up to `experts` experts."""

    def __init__(self, experts: int) -> None:
        self._experts = experts

    def __call__(self, rows: Tensor, weights: SlotMatrix, groups: Groups, out: Tensor, first: int = 0) -> None:
        shape = tile_shape(groups.layer_rows, self._experts, rows.dtype)
        count = groups.table.shape[1]
        tiles = min(groups.rows, groups.rows // shape["ROWS"] + count)
        strides = (1, weights.out) if weights.transposed else (rows.shape[1], 1)
        kernel: Any = grouped_rows
        kernel[(tiles, triton.cdiv(weights.out, OUT))](
            rows, out, weights.memory, *groups.table, count, first, rows.shape[1], weights.out,
            weights.stride, weights.start, *strides, max(weights.bias_start, 0),
            GROUPS=triton.next_power_of_2(self._experts), OUT=OUT, HAS_BIAS=weights.bias_start >= 0, **shape,
        )  # fmt: skip

    def try_out(self, dtype: torch.dtype, where: torch.device) -> None:
        """Run the lowest and the highest tile once, on zeros. Raises any error of building or running the kernel."""
        size = (TRIAL_SIZE, TRIAL_SIZE)
        memory, out = (torch.zeros(TRIAL_SIZE * TRIAL_SIZE, dtype=dtype, device=where) for _ in range(2))
        rows, weights = memory.view(size), SlotMatrix(memory, len(memory), 0, size)
        table = torch.zeros(3, 1, dtype=torch.int64, device=where)
        for layer_rows in (1, MAX_ROWS * self._experts):
            self(rows, weights, Groups(table, 1, layer_rows), out.view(size))


def tile_shape(layer_rows: int, experts: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return tiles about as high as an expert's average row count; float32, without tensor cores, takes the lowest."""
    usual = triton.next_power_of_2(max(layer_rows // experts, 1))
    if dtype == torch.float32:
        return {"ROWS": MIN_ROWS, "IN": 32, "num_warps": 4, "num_stages": 3}
    rows = min(max(usual, MIN_ROWS), MAX_ROWS)
    return {"ROWS": rows, "IN": 64, "num_warps": 8 if rows == MAX_ROWS else 4, "num_stages": 3}
