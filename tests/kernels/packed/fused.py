"""What every build of the kernels must satisfy on packed experts, whether it is this one or one with a fault."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from expertflow.workers.kernels.native import NativeKernels
from expertflow.workers.kernels.packed_matrix import PackedMatrix

from ..checks import draw
from .made import GGUF_FORMATS, Layout, make

INNER, WIDTH = 96, 160
GROUPED: dict[str, dict[str, int | str | bool]] = {
    "float8": {"scale_dtype": "float32", "group_rows": 128, "group_columns": 128},
    "float4": {"scale_dtype": "exponent", "group_columns": 32},
    "int4": {"scale_dtype": "float16", "group_columns": 32, "has_zeros": True},
    "int8": {"scale_dtype": "bfloat16", "group_columns": 0},
}


def layouts_of(name: str, is_gated: bool) -> tuple[Layout, Layout]:
    """Return the layouts of both matrices of an expert: rows that are no multiple of a tile where columns may be."""
    is_long = name.endswith("_K")
    inner, width = (256, 512) if is_long else (INNER, WIDTH)
    first = 2 * inner if is_gated else inner
    if name in GGUF_FORMATS:
        return Layout(name, first, width), Layout(name, width, inner)
    return Layout(name, first, width, **GROUPED[name]), Layout(name, width, inner, **GROUPED[name])  # type: ignore[arg-type]


def experts_of(layouts: tuple[Layout, Layout], seed: int) -> dict[str, PackedMatrix]:
    first = "gate_up_proj" if layouts[0].rows == 2 * layouts[1].columns else "up_proj"
    return {first: make(layouts[0], seed).matrix, "down_proj": make(layouts[1], seed + 50).matrix}


def check_fused(kernels: NativeKernels, name: str, dtype: torch.dtype, is_gated: bool, counts: Sequence[int]) -> None:
    """Check that packed experts give the bits of their values, all in one call."""
    layouts = layouts_of(name, is_gated)
    packed = [experts_of(layouts, seed) for seed in range(len(counts))]
    dense = [{key: kernels.unpack(matrix, dtype) for key, matrix in one.items()} for one in packed]
    ends = np.cumsum([0, *counts]).tolist()
    bounds = list(zip(ends, ends[1:], strict=False))
    rows = draw(9, ends[-1], layouts[0].columns, dtype=dtype) / 256  # so that float16 holds what becomes of them
    found, expected = torch.empty_like(rows), torch.empty_like(rows)
    kernels.experts("silu", packed, bounds, rows, found)
    kernels.experts("silu", dense, bounds, rows, expected)
    assert torch.equal(found, expected) and found.isfinite().all()


def check_values(kernels: NativeKernels, name: str) -> None:
    """Check that unpacked matrices are those of numpy."""
    for layout in layouts_of(name, False):
        made = make(layout)
        assert torch.equal(kernels.unpack(made.matrix, torch.bfloat16), made.rounded(torch.bfloat16))
