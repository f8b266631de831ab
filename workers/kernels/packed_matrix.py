"""One packed matrix of an expert: its packing, the tensors of its slot, and the structure that the C kernels read."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch

from ...errors import CheckpointError
from ..packed.packing import GGUF_BLOCKS, Packing

FORMATS = ("float8", "float4", "int4", "int8", "Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4")
"""Formats in the order of the enumeration in native/kernels.h."""
SCALE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3": 1, "exponent": 1}
"""Types of scales, in the order of the enumeration, and their bytes."""

_SIZES = ("rows", "columns", "row_bytes", "group_rows", "group_columns", "parts", "order_parts")


class PackedFields(ctypes.Structure):
    """A packed matrix, laid out like `struct packed` of native/kernels.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("format", "scale_type")),
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in ("codes", "scales", "zeros", "tensor_scale", "order")),
    ]


class PackedMatrix:
    """A matrix [rows, columns] whose values are made where they are multiplied.

    `tensors`: those of the expert's slot by name; they must stay where they are in memory as long as the matrix is
    used. Raises CheckpointError for a packing that the kernels do not know, and for tensors that do not fit it.
    """

    def __init__(self, packing: Packing, tensors: Mapping[str, torch.Tensor]) -> None:
        self.packing = packing
        self.shape = (packing.rows, packing.columns)
        if packing.format not in FORMATS or (packing.scale_dtype and packing.scale_dtype not in SCALE_BYTES):
            what = f"are packed as {packing.format} with scales in '{packing.scale_dtype}', which no kernel takes"
            raise CheckpointError(what, packing.parameter, "Choose experts_in = dequantised")
        self._held = {name: tensors[name] for name in packing.tensors}
        for name, count in _counts(packing, self._held).items():
            _check(packing, name, self._held[name], count)
        self.fields = self._make_fields()
        self.address = ctypes.addressof(self.fields)
        """Address of `fields`."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.packing.rows

    @property
    def count_bytes(self) -> int:
        """Return the bytes of codes, scales and what else makes the values."""
        return sum(tensor.numel() * tensor.itemsize for tensor in self._held.values())

    def _make_fields(self) -> PackedFields:
        packing = self.packing
        fields = PackedFields(FORMATS.index(packing.format), 0, packing.rows, packing.columns, packing.row_bytes)
        if packing.scale_dtype:
            fields.scale_type = list(SCALE_BYTES).index(packing.scale_dtype)
        fields.group_rows, fields.group_columns = packing.group_rows, packing.group_columns or packing.columns
        for field in ("codes", "scales", "zeros", "tensor_scale", "order"):
            if name := getattr(packing, field):
                setattr(fields, field, self._held[name].data_ptr())
        fields.parts = self._held[packing.tensor_scale].numel() if packing.tensor_scale else 1
        fields.order_parts = self._held[packing.order].numel() // packing.columns if packing.order else 1
        return fields


def _counts(packing: Packing, held: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return name -> number of values of the tensors whose size the packing decides."""
    row_groups, column_groups = packing.grid
    counts = {packing.codes: packing.rows * packing.row_bytes}
    if packing.format not in GGUF_BLOCKS:
        counts[packing.scales] = row_groups * column_groups
    if packing.zeros:
        counts[packing.zeros] = row_groups * column_groups
    if packing.order:
        parts = max(1, held[packing.order].numel() // packing.columns)
        counts[packing.order] = parts * packing.columns
    return counts


def _check(packing: Packing, name: str, tensor: torch.Tensor, count: int) -> None:
    sizes = {packing.order: 4, packing.scales: SCALE_BYTES.get(packing.scale_dtype, 1)}
    if tensor.numel() != count or tensor.itemsize != sizes.get(name, 1) or not tensor.is_contiguous():
        found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        what = f"has {found} for '{name}', not {count} values that lie together"
        raise CheckpointError(what, packing.parameter, "Report this as a bug")
