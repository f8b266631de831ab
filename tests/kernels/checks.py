"""What every build of the C kernels must satisfy; the tests apply it to this one, and to builds with a fault."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import torch
from expertflow.workers.kernels.native import NativeKernels

ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
"""Relative error of a result that is rounded once, with some room."""
SUM_ERROR = 1e-6
"""Error of a float32 sum, relative to the sum of the magnitudes of its terms."""


def draw(seed: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def largest_excess(result: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> float:
    """Return how far a product is beyond its error bound against float64; at most 0 if it is right."""
    exact = rows.double() @ weight.double().t() + (0 if bias is None else bias.double())
    magnitude = rows.double().abs() @ weight.double().abs().t() + (0 if bias is None else bias.double().abs())
    bound = SUM_ERROR * magnitude + ROUNDING[rows.dtype] * exact.abs() + 1e-30
    return float(((result.double() - exact).abs() - bound).amax()) if len(rows) else 0.0


def check_products(kernels: NativeKernels, dtype: torch.dtype, shape: tuple[int, int], counts: Sequence[int]) -> None:
    """Check several weights [out, in] in one call: each near float64, and each row as if it were alone."""
    out, width = shape
    weights = [draw(i, out, width, dtype=dtype) for i in range(len(counts))]
    ends = np.cumsum([0, *counts]).tolist()
    bounds = list(zip(ends, ends[1:], strict=False))
    rows = draw(99, ends[-1], width, dtype=dtype)
    together = kernels.products(weights, None, bounds, rows)
    for weight, (low, high) in zip(weights, bounds, strict=True):
        assert largest_excess(together[low:high], rows[low:high], weight, None) <= 0
        for row in range(low, high):
            assert torch.equal(kernels.linear(rows[row : row + 1], weight), together[row : row + 1])


def experts_of(
    seed: int, inner: int, width: int, gated: bool, biased: bool, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    name, columns = ("gate_up_proj", 2 * inner) if gated else ("up_proj", inner)
    weights = {
        name: draw(seed, columns, width, dtype=dtype) / width**0.5,
        "down_proj": draw(seed + 1, width, inner, dtype=dtype) / inner**0.5,
    }
    if biased:
        weights[f"{name}_bias"] = draw(seed + 2, columns, dtype=dtype)
        weights["down_proj_bias"] = draw(seed + 3, width, dtype=dtype)
    return weights


def guarded(tensor: torch.Tensor) -> tuple[torch.Tensor, mmap.mmap]:
    """Return a copy of a tensor whose last byte is the last of a page before one that may not be read."""
    import ctypes

    size = tensor.numel() * tensor.itemsize
    pages = -(-size // mmap.PAGESIZE) + 1
    memory = mmap.mmap(-1, pages * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    guard = ctypes.c_void_p(address + (pages - 1) * mmap.PAGESIZE)
    assert libc.mprotect(guard, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    start = (pages - 1) * mmap.PAGESIZE - size
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=start).view(tensor.shape)
    copy.copy_(tensor)
    return copy, memory
