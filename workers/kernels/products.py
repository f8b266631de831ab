"""The library's products of rows and a weight, by the name of their kernel.

On few 16-bit rows a linear layer streams its weight at two thirds of the memory bandwidth. With the weight as the left
factor it reaches all of it, where the CPU has instructions for the dtype. Without them the library multiplies one row
at a time, and a product in float32 is several times faster (docs/kernels.md). Which kernel runs depends on shape, dtype
and rows alone, and one expert or all in one call give the same product: no result depends on when an expert arrived
(I1a).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import grouped_mm, linear

from .table import FLOAT32_TILES, LEFT_FACTOR, LINEAR, MAX_LEFT_FACTOR_ROWS

STREAMED_DTYPES = (torch.bfloat16, torch.float16)
EXACT_ROWS = 16
"""Up to this count every number of rows is run as it is, without padding."""
GROUPED_STRIDE_BYTES = 16
"""The library's grouped product requires rows of a multiple of this size."""
TILE_BYTES = 1 << 19
"""Bytes of a float32 tile: half of a small second-level cache of one core (benchmarks on AVX2 and AVX-512)."""

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Multiplies rows [n, in] by a weight [out, in] and adds a bias [out] or None: [n, out], perhaps not contiguous."""


def project(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, kernel: str = ""
) -> torch.Tensor:
    """Multiply rows [n, in] by weight [out, in] and add bias [out]: [n, out], perhaps not contiguous.

    Without a `kernel` the rule decides, as for shapes that were not measured.
    """
    return PRODUCTS[kernel or _kernel_by_rule(weight, len(rows))](rows, weight, bias)


def project_left_factor(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute a `Product` with the weight as the left factor."""
    if len(rows) == 1:
        row = rows[0].contiguous()
        return (torch.mv(weight, row) if bias is None else torch.addmv(bias, weight, row))[None]
    columns = rows.contiguous().t()
    return (torch.mm(weight, columns) if bias is None else torch.addmm(bias[:, None], weight, columns)).t()


def project_float32_tiles(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute a `Product` in float32: cast the weight tile by tile, multiply while the tile is in the cache, cast back.

    Sums are exact to float32, so a result is rounded once.
    """
    outputs, inputs = weight.shape
    columns = rows.float().contiguous().t()
    products = torch.empty(outputs, len(rows))
    size = max(TILE_BYTES // (4 * inputs), 1)
    tile = torch.empty(min(size, outputs), inputs)
    for low in range(0, outputs, size):
        part = weight[low : low + size]
        own = tile[: len(part)]
        own.copy_(part)
        torch.mm(own, columns, out=products[low : low + len(part)])
    if bias is not None:
        products += bias.float()[:, None]
    return products.t().to(rows.dtype)


PRODUCTS: dict[str, Product] = {
    LEFT_FACTOR: project_left_factor,
    LINEAR: linear,
    FLOAT32_TILES: project_float32_tiles,
}
"""The products by the names of their kernels."""


def project_stack(rows: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Multiply the rows [n, in] of all experts by their weights [experts, out, in]: [n, out].

    `ends`, int32 [experts], is where the rows of each end. Gives the bits of `project_left_factor` for every expert, if
    `may_stack`. Rows are contiguous in both, since the library takes another kernel for a strided vector.
    """
    return grouped_mm(weights, rows.contiguous().t(), offs=ends).t()


def may_stack(weights: torch.Tensor, max_rows: int) -> bool:
    """Return whether `project_stack` takes weights [experts, out, in] and up to `max_rows` rows an expert.

    It does not take float16: the library's float16 kernels for single vectors round differently.
    """
    row_bytes = weights.shape[-1] * weights.itemsize
    is_bfloat16 = weights.dtype == torch.bfloat16
    return is_bfloat16 and _is_streamed(weights[0], max_rows) and row_bytes % GROUPED_STRIDE_BYTES == 0


def padded_rows(rows: int) -> int:
    """Return how many rows are run for `rows`, so that few shapes occur and at most an eighth of the rows is padding.

    The library prepares a kernel for each new shape (4 ms) and keeps some 1,000.
    """
    if rows <= EXACT_ROWS:
        return rows
    step = 1 << ((rows - 1).bit_length() - 4)
    return -(-rows // step) * step


def run_rows(rows: int, kernel: str) -> int:
    """Return how many rows are run for `rows` by a kernel: only the library's 16-bit products want padding."""
    return padded_rows(rows) if kernel in ("", LEFT_FACTOR, LINEAR) else rows


def _kernel_by_rule(weight: torch.Tensor, rows: int) -> str:
    return LEFT_FACTOR if _is_streamed(weight, rows) else LINEAR


def _is_streamed(weight: torch.Tensor, rows: int) -> bool:
    """Return whether the rule takes the weight [out, in] as the left factor for this number of rows."""
    few = rows <= MAX_LEFT_FACTOR_ROWS
    return weight.dtype in STREAMED_DTYPES and few and weight.is_contiguous() and weight.is_cpu
