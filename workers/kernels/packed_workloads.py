"""Work that is timed for packed experts: multiplied as they are, or unpacked first, on codes that are in no cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from msgspec import structs

from ...ipc.shared.available import available_bytes
from ..packed.packing import EXPONENT, FLOAT8_SCALE, GGUF_BLOCKS, Packing
from .experts import first_projection, native_activation, run_by_library, run_native
from .native import NativeKernels
from .packed_experts import NativeUnpacker
from .table import NATIVE, ExpertShape
from .unpacking import ExpertWeights, Unpacker
from .workloads import MAX_WEIGHT_BYTES, expert_candidates, random_rows

POOL_BYTES = 128 << 20
"""Experts are taken in turn from this much memory, or from an eighth of what is free: more than most caches hold."""
LEAST_INNER = 512
"""Inner values of the part of a large expert that is timed: a multiple of every block."""
_SCALE = 0.01
_SCALE_CODES = {FLOAT8_SCALE: 20, EXPONENT: 121}


class PackedExpertWorkload:
    """A packed expert, or one with fewer inner values that is small enough. `module` gives its activation."""

    def __init__(
        self, shape: ExpertShape, packings: Sequence[Packing], module: Any, native: NativeKernels | None
    ) -> None:
        self.key, self._module, self._native = shape.key, module, native
        self.candidates = packed_candidates(expert_candidates(shape, module, native, packings), packings)
        self._activation, self._width = native_activation(module, packings), shape.width
        dtype: torch.dtype = getattr(torch, shape.dtype)
        packings = fitting_packings(packings, shape.inner)
        known = native is not None and NativeUnpacker.takes(packings)
        self._unpacker = NativeUnpacker(native, packings, dtype) if native and known else Unpacker(packings, dtype)
        one = plain_tensors(shape, packings, first_projection(module))
        for packing in packings:
            one |= sample_tensors(packing)
        self._pool = _copies(one)
        self._rows = torch.empty(0, dtype=dtype)

    def prepare(self, rows: int) -> None:
        """Make the input of the next runs: `rows` rows."""
        self._rows = random_rows(rows, self._width, self._rows.dtype)

    def run(self, kernel: str, number: int) -> None:
        """Compute once by a kernel, with the weights of this number in turn."""
        weights, rows = self._pool[number % len(self._pool)], self._rows
        if kernel == NATIVE and self._native is not None and isinstance(self._unpacker, NativeUnpacker):
            bounds, products = [(0, len(rows))], torch.empty_like(rows)
            held = [self._unpacker.keep_packed(weights)]
            run_native(self._native, self._module, self._activation, held, bounds, rows, products)
        else:
            run_by_library(self._module, self._unpacker.unpack(weights), rows, kernel)


def packed_candidates(candidates: list[str], packings: Sequence[Packing]) -> list[str]:
    """Return those of the kernels that can take an expert whose matrices are packed so."""
    return [kernel for kernel in candidates if kernel != NATIVE or NativeUnpacker.takes(packings)]


def fitting_packings(packings: Sequence[Packing], inner: int) -> list[Packing]:
    """Return the packings of an expert with so many inner values that it takes no more than `MAX_WEIGHT_BYTES`.

    Columns of the second matrix and rows of the first are inner values, once or twice.
    """
    count_bytes = sum(packing.rows * packing.row_bytes for packing in packings)
    if count_bytes <= MAX_WEIGHT_BYTES or inner <= LEAST_INNER or len(packings) != 2:
        return list(packings)
    fitting = max(inner * MAX_WEIGHT_BYTES // count_bytes // LEAST_INNER * LEAST_INNER, LEAST_INNER)

    def part(packing: Packing) -> Packing:
        if packing.parameter == "down_proj":
            return structs.replace(packing, columns=fitting, order="")
        return structs.replace(packing, rows=packing.rows // inner * fitting)

    return [part(packing) for packing in packings]


def plain_tensors(shape: ExpertShape, packings: Sequence[Packing], first: str) -> ExpertWeights:
    """Return zeros for the parameters of an expert that are not packed; `first`: name of the first projection."""
    packed = {packing.parameter: packing for packing in packings}
    inner = packed["down_proj"].columns if "down_proj" in packed else shape.inner
    up, flip = inner * (2 if shape.gated else 1), slice(None, None, -1 if shape.transposed else 1)
    shapes = {first: [up, shape.width][flip], "down_proj": [shape.width, inner][flip]}
    if shape.bias:
        shapes |= {f"{first}_bias": [up], "down_proj_bias": [shape.width]}
    dtype: torch.dtype = getattr(torch, shape.dtype)
    return {name: torch.zeros(own, dtype=dtype) for name, own in shapes.items() if name not in packed}


def sample_tensors(packing: Packing) -> dict[str, torch.Tensor]:
    """Return slot tensors of a matrix: random codes, and scales by which values have the size of a weight's."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 120, (packing.rows, packing.row_bytes), dtype=torch.uint8, generator=generator)
    tensors = {packing.codes: codes}
    if packing.format in GGUF_BLOCKS:
        _set_scales(packing.format, codes.view(packing.rows, -1, GGUF_BLOCKS[packing.format][1]))
        return tensors
    if packing.scale_dtype in _SCALE_CODES:
        scale = torch.tensor(_SCALE_CODES[packing.scale_dtype], dtype=torch.uint8)
    else:
        scale = torch.tensor(_SCALE, dtype=getattr(torch, packing.scale_dtype))
    tensors[packing.scales] = scale.expand(packing.grid).contiguous()
    if packing.zeros:
        tensors[packing.zeros] = torch.full(packing.grid, 7, dtype=torch.uint8)
    if packing.tensor_scale:
        tensors[packing.tensor_scale] = torch.ones(1)
    if packing.order:
        width = packing.group_columns or packing.columns
        tensors[packing.order] = (torch.arange(packing.columns) // width).int()
    return tensors


def _set_scales(name: str, blocks: torch.Tensor) -> None:
    """Give blocks of a GGUF type, uint8 [rows, blocks, bytes], scales of some thousandths."""
    if name == "MXFP4":
        blocks[..., 0] = 120
        return
    for place in {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(name, (0,)):
        blocks[..., place + 1] = 0x14


def _copies(one: ExpertWeights) -> list[ExpertWeights]:
    size = sum(tensor.numel() * tensor.itemsize for tensor in one.values())
    count = max(1, min(POOL_BYTES, available_bytes() // 8) // size)
    return [{name: tensor.clone() for name, tensor in one.items()} for _ in range(count)]
