"""Unpacks the packed matrices of an expert with torch, on any device: the values that the dequantised way gives.

Arithmetic is that of `Packing`: float32, each operation rounded once, then one rounding to the type of the slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from ..checkpoint.gguf.dequantise import dequantise
from ..packed.packing import (
    EXPONENT,
    FLOAT4,
    FLOAT8,
    FLOAT8_SCALE,
    GGUF_BLOCKS,
    INT4,
    INT8,
    SYMMETRIC_ZERO,
    Packing,
)
from ..packed.values import FLOAT4_VALUES

ExpertWeights = dict[str, torch.Tensor]
"""Parameter name, as in the experts module, or name of a slot tensor -> the tensor of one expert."""


class Unpacker:
    """Unpacks experts of one layer into memory that the next expert takes again."""

    def __init__(self, packings: Sequence[Packing], dtype: torch.dtype) -> None:
        """Unpack matrices to `dtype`. Raises KeyError for a format that is not known."""
        self._packings, self._dtype = packings, dtype
        self._values = {packing.codes: VALUES[packing.format] for packing in packings}
        self._held = {name for packing in packings for name in packing.tensors}
        self._scratch: dict[str, torch.Tensor] = {}

    def unpack(self, weights: ExpertWeights) -> ExpertWeights:
        """Return the parameters of an expert, given its slot tensors; they are valid until the next call."""
        plain = {name: tensor for name, tensor in weights.items() if name not in self._held}
        return plain | {own.parameter: self._unpack(own, weights) for own in self._packings if own.codes in weights}

    def _unpack(self, packing: Packing, weights: ExpertWeights) -> torch.Tensor:
        values = self._values[packing.codes](packing, weights)
        matrix = values.t() if packing.transposed else values
        if values.device.type != "cpu":  # kernels may still run on the last expert's: the device orders its memory
            return matrix.to(self._dtype, memory_format=torch.contiguous_format)
        scratch = self._scratch.get(packing.parameter)
        if scratch is None:
            scratch = self._scratch[packing.parameter] = torch.empty(packing.shape, dtype=self._dtype)
        return scratch.copy_(matrix)


def unpack_matrix(packing: Packing, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the values of a packed matrix, float32 [rows, columns]. `weights` holds its slot tensors by name."""
    return VALUES[packing.format](packing, weights)


def _scaled(codes: torch.Tensor, packing: Packing, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return float32 codes [rows, columns], less their zero points, times their scales; writes into `codes`."""
    if packing.zeros:
        codes -= _spread(weights[packing.zeros].float(), packing, weights)
    elif zero := SYMMETRIC_ZERO.get(packing.format):
        codes -= zero
    scales = _scale_values(packing, weights)
    if not packing.order:
        blocks = _blocks(codes, packing)
        if blocks is not None:
            blocks *= scales[:, None, :, None]
            return codes
    codes *= _spread(scales, packing, weights)
    return codes


def _blocks(values: torch.Tensor, packing: Packing) -> torch.Tensor | None:
    """Return a view [row groups, rows, column groups, columns], if no group at the edge is smaller."""
    high, wide = packing.group_rows, packing.group_columns or packing.columns
    if packing.rows % high or packing.columns % wide:
        return None
    return values.view(packing.rows // high, high, packing.columns // wide, wide)


def _spread(grid: torch.Tensor, packing: Packing, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return [rows, columns]: the entry of `grid` [row groups, column groups] that covers each value."""
    rows = grid.repeat_interleave(packing.group_rows, 0)[: packing.rows] if packing.group_rows > 1 else grid
    if packing.order:
        return rows.index_select(1, weights[packing.order])
    return rows.repeat_interleave(packing.group_columns or packing.columns, 1)[:, : packing.columns]


def _scale_values(packing: Packing, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the scales, float32 [row groups, column groups], divided by the tensor scale if there is one."""
    scales = _float_scales(weights[packing.scales], packing.scale_dtype)
    if not packing.tensor_scale:
        return scales
    parts = weights[packing.tensor_scale]
    return scales / parts.repeat_interleave(len(scales) // len(parts))[:, None]


def _float_scales(stored: torch.Tensor, dtype: str) -> torch.Tensor:
    if dtype == EXPONENT:
        return _exponents(stored.device)[stored.int()]
    return (stored.view(torch.float8_e4m3fn) if dtype == FLOAT8_SCALE else stored).float()


def _exponents(device: torch.device) -> torch.Tensor:
    """Return float32 [256], the scale of each exponent e: 2 ** (e - 127), and NaN for 255."""
    bits = torch.arange(256, dtype=torch.int32, device=device) << 23
    bits[0], bits[255] = 1 << 22, 0x7FC00000  # 2 ** -127 is below the normal numbers
    return bits.view(torch.float32)


def _float8(packing: Packing, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return _scaled(weights[packing.codes].view(torch.float8_e4m3fn).float(), packing, weights)


def _float4(packing: Packing, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    codes = weights[packing.codes]
    values = torch.tensor(FLOAT4_VALUES, device=codes.device)
    pairs = torch.stack([values[(codes & 15).int()], values[(codes >> 4).int()]], dim=-1)
    return _scaled(pairs.view(packing.rows, packing.columns), packing, weights)


def _int4(packing: Packing, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    codes = weights[packing.codes]
    values = torch.empty((packing.rows, packing.columns), dtype=torch.float32, device=codes.device)
    values[:, 0::2], values[:, 1::2] = codes & 15, codes >> 4
    return _scaled(values, packing, weights)


def _int8(packing: Packing, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return _scaled(weights[packing.codes].view(torch.int8).float(), packing, weights)


def _in_blocks(packing: Packing, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Unpack blocks of GGUF on the CPU, whatever the device."""
    codes = weights[packing.codes]
    values = dequantise(codes.cpu().reshape(-1).numpy(), packing.format)
    return torch.from_numpy(values).view(packing.rows, packing.columns).to(codes.device)


VALUES: dict[str, Callable[[Packing, Mapping[str, torch.Tensor]], torch.Tensor]] = {
    FLOAT8: _float8,
    FLOAT4: _float4,
    INT4: _int4,
    INT8: _int8,
    **dict.fromkeys(GGUF_BLOCKS, _in_blocks),
}
"""Format -> function from a packing and its slot tensors to float32 [rows, columns]."""
