"""Projects rows through weights with the kernel that streams them fastest, chosen by shape alone.

On few 16-bit rows a linear layer streams its weight at two thirds of the memory bandwidth. With the weight as the left
factor it reaches all of it, up to some 200 rows (docs/log/performance.md). The choice depends on shapes and dtypes
alone, and one expert or all in one call give the same product: no result depends on when an expert arrived (I1a).
"""

from __future__ import annotations

import torch
from torch.nn.functional import grouped_mm, linear

MAX_STREAMED_ROWS = 192
"""More rows are compute-bound, and a linear layer is faster."""
STREAMED_DTYPES = (torch.bfloat16, torch.float16)
EXACT_ROWS = 16
"""Up to this count every number of rows is run as it is, without padding."""
GROUPED_STRIDE_BYTES = 16
"""The library's grouped product requires rows of a multiple of this size."""


def project(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply rows [n, in] by weight [out, in] and add bias [out]: [n, out], perhaps not contiguous."""
    if not is_streamed(weight, len(rows)):
        return linear(rows, weight, bias)
    if len(rows) == 1:
        row = rows[0].contiguous()
        return (torch.mv(weight, row) if bias is None else torch.addmv(bias, weight, row))[None]
    columns = rows.contiguous().t()
    return (torch.mm(weight, columns) if bias is None else torch.addmm(bias[:, None], weight, columns)).t()


def project_stack(rows: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Multiply the rows [n, in] of all experts by their weights [experts, out, in]: [n, out].

    `ends`, int32 [experts], is where the rows of each end. Gives the bits of `project` for every expert, if
    `may_stack`. Rows are contiguous in both, since the library takes another kernel for a strided vector.
    """
    return grouped_mm(weights, rows.contiguous().t(), offs=ends).t()


def may_stack(weights: torch.Tensor, max_rows: int) -> bool:
    """Return whether `project_stack` takes weights [experts, out, in] and up to `max_rows` rows an expert.

    It does not take float16: the library's float16 kernels for single vectors round differently.
    """
    row_bytes = weights.shape[-1] * weights.itemsize
    is_bfloat16 = weights.dtype == torch.bfloat16
    return is_bfloat16 and is_streamed(weights[0], max_rows) and row_bytes % GROUPED_STRIDE_BYTES == 0


def is_streamed(weight: torch.Tensor, rows: int) -> bool:
    """Return whether the weight [out, in] is the left factor for this number of rows."""
    return weight.dtype in STREAMED_DTYPES and rows <= MAX_STREAMED_ROWS and weight.is_contiguous() and weight.is_cpu


def padded_rows(rows: int) -> int:
    """Return how many rows are run for `rows`, so that few shapes occur and at most an eighth of the rows is padding.

    The library prepares a kernel for each new shape (4 ms) and keeps some 1,000.
    """
    if rows <= EXACT_ROWS:
        return rows
    step = 1 << ((rows - 1).bit_length() - 4)
    return -(-rows // step) * step
