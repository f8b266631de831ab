"""Packings: how the bytes of an expert's matrix, held in a slot as they are stored, become values.

Plain data, readable without torch. A survey has one packing for each packed matrix of an expert, by variant (layers
stored alike) and kind. Values are made exactly as the dequantised way makes them: float32 arithmetic, in the order
that `Packing` states, then one rounding to the type that is computed in. So both ways give the same bits.
"""

from __future__ import annotations

import msgspec

FLOAT8, FLOAT4, INT4, INT8 = "float8", "float4", "int4", "int8"
EXPONENT, FLOAT8_SCALE = "exponent", "float8_e4m3"
GGUF_BLOCKS: dict[str, tuple[int, int]] = {
    "Q4_0": (32, 18),
    "Q5_0": (32, 22),
    "Q8_0": (32, 34),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ4_NL": (32, 18),
    "MXFP4": (32, 17),
}
"""Values and bytes of a block of each GGUF type, which holds its own scales."""
CODES_PER_BYTE = {FLOAT8: 1, FLOAT4: 2, INT4: 2, INT8: 1}
SYMMETRIC_ZERO = {INT4: 8}
"""Code of the value zero where a packing has no zero points, by format; 0 for the others."""


class Packing(msgspec.Struct, frozen=True, kw_only=True):
    """Rule by which the bytes of one matrix [rows, columns] of an expert, as a slot holds them, become values.

    A value is `(code - zero) * scale`, or `code * (scale / tensor_scale)` with a tensor scale; each operation is
    rounded to float32, the result to the type that is computed in. Codes: `float8` e4m3 [rows, columns]; `float4` e2m1
    and `int4` two a byte, the earlier column in the low bits, [rows, columns / 2]; `int4` unsigned, zero 8 where
    symmetric; `int8` signed [rows, columns]; a GGUF type [rows, columns / block * bytes of a block], as in the file.
    """

    parameter: str
    """Name of the parameter, as in the experts module."""
    format: str
    """`float8`, `float4`, `int4`, `int8`, or a GGUF type of `GGUF_BLOCKS`."""
    rows: int
    """Outputs, those of gate and up together."""
    columns: int
    """Inputs."""
    codes: str
    """Slot tensor with the codes (uint8), row after row."""
    scales: str = ""
    """Slot tensor [row groups, column groups] with the scales; empty for GGUF, whose blocks hold their own."""
    scale_dtype: str = ""
    """`float32`, `float16`, `bfloat16`, `float8_e4m3`, or `exponent` (a byte e: 2 ** (e - 127), 255 is NaN)."""
    group_rows: int = 1
    group_columns: int = 0
    """Rows and columns that one scale covers; fewer at the edges."""
    zeros: str = ""
    """Slot tensor (uint8, int8 codes: int8) [row groups, column groups] of zero points; empty: symmetric."""
    tensor_scale: str = ""
    """Slot tensor float32 [parts] that divides the scales (NVFP4, as compressed-tensors stores it); each covers
    rows / parts rows. Formats that store a factor instead have its place filled with the reciprocal."""
    order: str = ""
    """Slot tensor int32 [columns], the group of each column (GPTQ act-order); empty: column // group_columns."""
    transposed: bool = False
    """The parameter is [columns, rows]: the transpose of the packed matrix."""
    variant: int = 0
    """Layers whose experts are stored alike share one."""
    kind: int = 0

    @property
    def row_bytes(self) -> int:
        """Return the bytes of one row of codes."""
        if self.format in GGUF_BLOCKS:
            values, size = GGUF_BLOCKS[self.format]
            return self.columns // values * size
        return self.columns // CODES_PER_BYTE[self.format]

    @property
    def grid(self) -> tuple[int, int]:
        """Return the numbers of row groups and column groups, the shape of scales and zero points."""
        return -(-self.rows // self.group_rows), -(-self.columns // (self.group_columns or self.columns))

    @property
    def shape(self) -> list[int]:
        """Return the shape of the parameter of one expert."""
        return [self.columns, self.rows] if self.transposed else [self.rows, self.columns]

    @property
    def tensors(self) -> list[str]:
        """Return the names of the slot tensors that hold it."""
        return [name for name in (self.codes, self.scales, self.zeros, self.tensor_scale, self.order) if name]
