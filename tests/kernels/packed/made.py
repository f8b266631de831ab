"""Random packed matrices of every format, and their values by numpy: float32 arithmetic, rounded once."""

from __future__ import annotations

from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from expertflow.workers.checkpoint.row_conversion import float4_pairs, float8_values
from expertflow.workers.kernels.packed_matrix import PackedMatrix
from expertflow.workers.packed.packing import GGUF_BLOCKS, Packing

GGUF_FORMATS = tuple(GGUF_BLOCKS)
GROUPED_FORMATS = ("float8", "float4", "int4", "int8")
SCALE_DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3", "exponent")


class Layout(NamedTuple):
    """How the groups of a matrix lie, and what it has besides codes and scales."""

    format: str
    rows: int
    columns: int
    scale_dtype: str = "float32"
    group_rows: int = 1
    group_columns: int = 0
    has_zeros: bool = False
    parts: int = 0
    is_ordered: bool = False


class Made(NamedTuple):
    """A packed matrix and its values, float32 [rows, columns]."""

    matrix: PackedMatrix
    values: np.ndarray

    def rounded(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the values in the type that is computed in."""
        return torch.from_numpy(self.values).to(dtype)


def make(layout: Layout, seed: int = 0, wild: bool = False) -> Made:
    """Make a matrix; `wild`: every bit pattern of scales may occur, infinities and no numbers too."""
    generator = np.random.default_rng(seed)
    if layout.format in GGUF_BLOCKS:
        return _make_blocks(layout, generator, wild)
    row_groups, width = -(-layout.rows // layout.group_rows), layout.group_columns or layout.columns
    grid = (row_groups, -(-layout.columns // width))
    tensors, scales = _make_scales(layout.scale_dtype, grid, generator, wild)
    of_row = np.arange(layout.rows) // layout.group_rows
    of_column = np.arange(layout.columns) // width
    names: dict[str, Any] = {}
    numbers, tensors["codes"] = _make_codes(layout, generator, wild)
    of_column = np.tile(of_column, (layout.rows, 1))
    if layout.is_ordered:
        parts = 2 if layout.rows % 2 == 0 else 1
        orders = np.stack([generator.permutation(of_column[0]) for _ in range(parts)]).astype(np.int32)
        of_column = orders.repeat(layout.rows // parts, 0)
        tensors["order"], names["order"] = torch.from_numpy(orders.reshape(-1)), "order"
    zeros = np.full(grid, 8.0 if layout.format == "int4" else 0.0, dtype=np.float32)
    if layout.has_zeros:
        stored = generator.integers(-128, 128, grid).astype(np.int8)
        stored = stored if layout.format == "int8" else (stored.view(np.uint8) & 15)
        tensors["zeros"], names["zeros"], zeros = torch.from_numpy(stored), "zeros", stored.astype(np.float32)
    factors = scales[of_row[:, None], of_column]
    if layout.parts:
        parts = generator.uniform(0.5, 900, layout.parts).astype(np.float32)
        tensors["tensor_scale"], names["tensor_scale"] = torch.from_numpy(parts), "tensor_scale"
        with np.errstate(all="ignore"):
            factors = factors / np.repeat(parts, layout.rows // layout.parts)[:, None]
    with np.errstate(all="ignore"):
        values = (numbers - zeros[of_row[:, None], of_column]) * factors
    packing = Packing(
        parameter="weight", format=layout.format, rows=layout.rows, columns=layout.columns, codes="codes",
        scales="scales", scale_dtype=layout.scale_dtype, group_rows=layout.group_rows,
        group_columns=layout.group_columns, **names,
    )  # fmt: skip
    return Made(PackedMatrix(packing, tensors), values.astype(np.float32))


def _make_codes(layout: Layout, generator: np.random.Generator, wild: bool) -> tuple[np.ndarray, torch.Tensor]:
    """Return the numbers of random codes, float32 [rows, columns], and the codes."""
    width = layout.columns // (2 if layout.format in ("float4", "int4") else 1)
    stored = generator.integers(0, 256, (layout.rows, width)).astype(np.uint8)
    if layout.format == "float8" and not wild:
        stored[stored & 0x7F == 0x7F] = 0x38
    nibbles = np.stack([stored & 15, stored >> 4], axis=-1).reshape(layout.rows, -1)
    numbers = {
        "float8": lambda: float8_values()[stored],
        "float4": lambda: float4_pairs()[stored].reshape(layout.rows, -1),
        "int4": lambda: nibbles.astype(np.float32),
        "int8": lambda: stored.view(np.int8).astype(np.float32),
    }[layout.format]()
    return numbers, torch.from_numpy(stored)


def _make_scales(
    dtype: str, grid: tuple[int, int], generator: np.random.Generator, wild: bool
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Return scales as they are stored, and as float32 [row groups, column groups]."""
    size = {"float32": 4, "float16": 2, "bfloat16": 2}.get(dtype, 1)
    raw = torch.from_numpy(generator.integers(0, 256, (*grid, size)).astype(np.uint8))
    if dtype == "float8_e4m3":
        raw = raw[..., 0] if wild else raw[..., 0] % 127
        return {"scales": raw.contiguous()}, float8_values()[raw.numpy()]
    if dtype == "exponent":
        raw = raw[..., 0] if wild else raw[..., 0] % 20 + 110
        exponents = np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.float32(np.nan))
        return {"scales": raw.contiguous()}, exponents[raw.numpy()].astype(np.float32)
    kind: torch.dtype = getattr(torch, dtype)
    tame = torch.from_numpy(generator.normal(0, 0.05, grid)).to(kind)
    stored = raw.view(kind)[..., 0].contiguous() if wild else tame
    return {"scales": stored}, stored.float().numpy()


def _make_blocks(layout: Layout, generator: np.random.Generator, wild: bool) -> Made:
    """Make blocks of a GGUF type; the `gguf` package says what they mean."""
    length, size = GGUF_BLOCKS[layout.format]
    blocks = generator.integers(0, 256, (layout.rows, layout.columns // length, size)).astype(np.uint8)
    if not wild:
        _tame(layout.format, blocks)
    with np.errstate(all="ignore"):
        values = gguf.dequantize(blocks.reshape(layout.rows, -1), gguf.GGMLQuantizationType[layout.format])
    packing = Packing(parameter="weight", format=layout.format, rows=layout.rows, columns=layout.columns, codes="codes")
    codes = torch.from_numpy(blocks.reshape(layout.rows, -1).copy())
    return Made(PackedMatrix(packing, {"codes": codes}), values.astype(np.float32))


def _tame(name: str, blocks: np.ndarray) -> None:
    """Give the scales of blocks the size of a weight's: about 0.02."""
    if name == "MXFP4":
        blocks[..., 0] = blocks[..., 0] % 8 + 116
        return
    places = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(name, (0,))
    for place in places:
        blocks[..., place + 1] = (blocks[..., place + 1] & 0x83) | 0x14
