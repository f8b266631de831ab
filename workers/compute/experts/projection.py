"""Projects rows through weights with the kernel that streams them fastest, chosen by shape alone.

On few rows of 16 bits a linear layer streams its weight at two thirds of what the memory gives; with the weight as the
left factor all of it is reached, up to some 200 rows (docs/performance.md). The choice depends on shapes and dtypes
and nothing else, and one expert alone or all in one call are the same product: no result depends on which expert came
when (I1a).
"""

from __future__ import annotations

import torch
from torch.nn.functional import grouped_mm, linear

MAX_STREAMED_ROWS = 192
"""More rows are bound by arithmetic, and a linear layer is faster."""
STREAMED_DTYPES = (torch.bfloat16, torch.float16)
EXACT_ROWS = 16
"""Up to here every number of rows has a kernel of its own."""
GROUPED_STRIDE_BYTES = 16
"""What the library's grouped product asks of rows."""


def project(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """rows [n, in], weight [out, in], bias [out] -> [n, out], not necessarily contiguous."""
    if not is_streamed(weight, len(rows)):
        return linear(rows, weight, bias)
    if len(rows) == 1:
        row = rows[0].contiguous()
        return (torch.mv(weight, row) if bias is None else torch.addmv(bias, weight, row))[None]
    columns = rows.contiguous().t()
    return (torch.mm(weight, columns) if bias is None else torch.addmm(bias[:, None], weight, columns)).t()


def project_stack(rows: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """rows [n, in], weights [experts, out, in], ends int32 [experts] of each expert's rows -> [n, out].

    Bit for bit what `project` gives for each expert that `may_stack`; so rows lie one way in both, as the library takes
    another kernel for a vector whose values are apart.
    """
    return grouped_mm(weights, rows.contiguous().t(), offs=ends).t()


def may_stack(weights: torch.Tensor, most_rows: int) -> bool:
    """Whether `project_stack` can take these [experts, out, in], the busiest expert having `most_rows`.

    Not float16, of which the library has kernels for single vectors that round otherwise.
    """
    row_bytes = weights.shape[-1] * weights.itemsize
    is_bfloat16 = weights.dtype == torch.bfloat16
    return is_bfloat16 and is_streamed(weights[0], most_rows) and row_bytes % GROUPED_STRIDE_BYTES == 0


def is_streamed(weight: torch.Tensor, rows: int) -> bool:
    """Whether the weight [out, in] is the left factor for so many rows."""
    return weight.dtype in STREAMED_DTYPES and rows <= MAX_STREAMED_ROWS and weight.is_contiguous() and weight.is_cpu


def padded_rows(rows: int) -> int:
    """So many rows are run for `rows`: the library prepares a kernel for each new shape (4 ms) and keeps some 1,000.

    Steps grow with the size, so that few shapes occur and at most an eighth is run in vain.
    """
    if rows <= EXACT_ROWS:
        return rows
    step = 1 << ((rows - 1).bit_length() - 4)
    return -(-rows // step) * step
