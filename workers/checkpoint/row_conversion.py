"""Converts rows of stored weights to the type of a slot with numpy: cast, transpose, deinterleave, dequantise.

Casts round as torch does; bfloat16 travels as uint16. Dequantisation is bit for bit that of transformers 5
(`Fp8Dequantize` and `convert_moe_packed_tensors` in integrations/finegrained_fp8.py, mxfp4.py): values times scales in
float32, then rounded once to the type of the slot. A stored byte has 256 meanings under each scale. They are computed
once and looked up: nothing is multiplied or rounded value by value.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from ..packed.coding import Coding
from ..packed.packing import EXPONENT, FLOAT8_SCALE
from ..packed.unpacking import unpack_rows
from ..packed.values import float4_pairs, float8_values
from .gguf.block_types import BLOCK_TYPES
from .gguf.dequantise import dequantised_steps
from .headers import BYTE, FLOAT8, FLOAT8_EXPONENT
from .survey import FLOAT4_PAIRS, Piece, Scales

NUMPY_DTYPES: dict[str, type] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "uint8": np.uint8,
    "int8": np.int8,
    "int32": np.int32,
}
"""Types as numpy holds them. The last three are those of codes, zero points and groups: they are never cast."""

_UPPER_HALF = 1 if sys.byteorder == "little" else 0
_BYTES_AT_ONCE = 1 << 16
"""Stored bytes a step: these and their values stay in a core's cache from one operation to the next."""
_EXPONENTS = (BYTE, FLOAT8_EXPONENT)


def row_blocks(piece: Piece, limit_bytes: int) -> list[range]:
    """Return the rows (first dimension in the file) of a piece in blocks of at most `limit_bytes` there.

    A block has at least one row, or one pair of rows that alternate.
    """
    if piece.is_whole:
        return [range(piece.source_shape[0])]
    rows, least = piece.source_shape[0], 2 if piece.operation == "deinterleave" else 1
    step = max(1, limit_bytes * rows // piece.source_bytes // least) * least
    return [range(at, min(at + step, rows)) for at in range(0, rows, step)]


def convert_rows(raw: np.ndarray, target: np.ndarray, piece: Piece, rows: range, dtype: str) -> None:
    """Write `rows` of a piece, `raw` uint8 [bytes] as in the file, into `target`.

    `target`, uint8 [bytes], is the piece's place in a slot of `dtype`.
    """
    out = rows_in(target, piece, rows, dtype)
    if piece.source_dtype in BLOCK_TYPES:
        out[:] = _blocks_as(raw, piece.source_dtype, dtype).reshape(out.shape)
        return
    values = cast(raw.view(NUMPY_DTYPES[piece.source_dtype]), piece.source_dtype, dtype)
    out[:] = values.reshape(out.shape)


def _blocks_as(raw: np.ndarray, source: str, target: str) -> np.ndarray:
    """Return the values of GGUF blocks, `raw` uint8 [bytes], in type `target`."""
    own = BLOCK_TYPES[source]
    values = np.empty(raw.size // own.size_bytes * own.values, dtype=NUMPY_DTYPES[target])
    for place, found in dequantised_steps(raw, source):
        values[place] = cast(found, "float32", target)
    return values


def rows_in(target: np.ndarray, piece: Piece, rows: range, dtype: str) -> np.ndarray:
    """Return the view of `rows` of a piece (as in the file) in `target`: its bytes in a slot of `dtype`.

    Its shape is [rows, ...]. For rows that alternate it is [pairs, 2, ...], and `rows` must be whole pairs.
    """
    whole = target.view(NUMPY_DTYPES[dtype])
    if piece.operation == "transpose":
        columns = whole.reshape(*piece.source_shape[:0:-1], -1)[:, piece.first :: piece.every]
        return columns[:, rows.start : rows.stop].T
    if piece.operation == "deinterleave":
        return whole.reshape(2, -1, *piece.source_shape[1:]).swapaxes(0, 1)[rows.start // 2 : rows.stop // 2]
    return whole.reshape(-1, *piece.source_shape[1:])[piece.first :: piece.every][rows.start : rows.stop]


def cast(values: np.ndarray, source: str, target: str) -> np.ndarray:
    """Cast `values` from type `source` to `target`; any shape, which stays.

    bfloat16 is held as uint16 bits. Overflow gives infinity; the payload of a NaN may change.
    """
    if source == target:
        return values
    wide = _widen_bfloat16(values) if source == "bfloat16" else values
    with np.errstate(over="ignore", invalid="ignore"):
        if target == "float64":
            return wide.astype(np.float64)
        # torch goes from float64 to the half types by way of float32, and so rounds twice.
        single = wide.astype(np.float32)
        return _round_to_bfloat16(single) if target == "bfloat16" else single.astype(NUMPY_DTYPES[target])


def _widen_bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.uint32) << 16).view(np.float32)


def _round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest, ties to even: add half a unit, less one bit where the last kept bit is zero."""
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    upper = rounded.view(np.uint16)[..., _UPPER_HALF::2]
    # The largest value is a NaN if any is: much cheaper than a test of each.
    return np.where(np.isnan(values), np.uint16(0x7FC0), upper) if np.isnan(np.max(values, initial=0)) else upper


# Dequantisation


class Dequantiser(Protocol):
    """Converter of the stored rows of one kind of piece to rows of a slot."""

    def convert(self, raw: np.ndarray, scales: np.ndarray, target: np.ndarray, piece: Piece, rows: range) -> None:
        """Write `rows` of a piece, `raw` as in the file, into `target`: the piece's bytes in a slot.

        `scales`: the bytes of `scale_rows(piece.scales, rows)`, as in the file. All are uint8 [bytes].
        """
        ...


def make_dequantiser(piece: Piece, dtype: str) -> Dequantiser:
    """Return the dequantiser for pieces like this one, into slots of `dtype`. Raises ValueError without scales."""
    grid = scales_of(piece)
    grouped = grid.dtype in _EXPONENTS and grid.block[0] == 1 and grid.grid[1] * grid.block[1] == piece.source_shape[1]
    if piece.source_dtype == FLOAT4_PAIRS or grouped:
        return GroupDequantiser(piece.source_dtype, grid.dtype, dtype)
    return BlockDequantiser(dtype)


def scales_of(piece: Piece) -> Scales:
    """Return the scales of a piece. Raises ValueError for a piece that is not quantised."""
    if piece.scales is None:
        raise ValueError("the piece has no scales")
    return piece.scales


def scale_rows(scales: Scales, rows: range) -> range:
    """Return the rows of the grid of scales that `rows` of the matrix need."""
    return range(rows.start // scales.block[0], -(-rows.stop // scales.block[0]))


class BlockDequantiser:
    """Dequantiser of F8_E4M3 with a scale for each block of a matrix: each block has a table of its own."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._values = float8_values()

    def convert(self, raw: np.ndarray, scales: np.ndarray, target: np.ndarray, piece: Piece, rows: range) -> None:
        """Implement `Dequantiser`; all arrays are uint8 [bytes]."""
        grid, columns = scales_of(piece), piece.source_shape[1]
        own = scale_rows(grid, rows)
        factors = scale_values(scales, grid.dtype).reshape(len(own), -1)
        # The narrowest index is the fastest: it is widened once more inside the look-up.
        narrow = np.uint16 if grid.grid[1] <= 256 else np.uint32
        starts = (np.arange(columns) // grid.block[1] * len(self._values)).astype(narrow)
        stored = raw.reshape(len(rows), columns)
        for number, factor in zip(own, factors, strict=True):
            table = self._table(factor)
            for run in _row_runs(rows, number * grid.block[0], grid.block[0], columns):
                index = stored[run.start - rows.start : run.stop - rows.start] + starts
                np.take(table, index, out=rows_in(target, piece, run, self._dtype), mode="clip")

    def _table(self, factors: np.ndarray) -> np.ndarray:
        """Return [blocks * 256], the value of each byte in each block of a row of blocks, in the slot's type."""
        with np.errstate(over="ignore", invalid="ignore"):
            values = cast(np.multiply.outer(factors, self._values), "float32", self._dtype)
        return np.ascontiguousarray(values).reshape(-1)


def _row_runs(rows: range, first: int, count: int, columns: int) -> Iterator[range]:
    """Return those of `rows` among `count` rows from `first`, in runs of about `_BYTES_AT_ONCE`."""
    step = max(1, _BYTES_AT_ONCE // columns)
    start, stop = max(rows.start, first), min(rows.stop, first + count)
    return (range(at, min(at + step, stop)) for at in range(start, stop, step))


class GroupDequantiser:
    """Dequantiser of groups of a row with one exponent each (MXFP4, MXFP8): one table for all bytes and exponents."""

    def __init__(self, source_dtype: str, scale_dtype: str, dtype: str) -> None:
        self._dtype = dtype
        meanings = float8_values()[:, None] if source_dtype == FLOAT8 else float4_pairs()
        scales = scale_values(np.arange(256, dtype=np.uint8), scale_dtype).astype(np.float64)
        if source_dtype == FLOAT4_PAIRS and scale_dtype == BYTE:
            scales[255] = 2.0**128  # torch.ldexp knows no scale that is infinite: half of this is a float32
        with np.errstate(invalid="ignore"):
            values = cast(np.multiply.outer(scales, meanings.astype(np.float64)), "float64", "float32")
        self._table = np.ascontiguousarray(cast(values, "float32", dtype).reshape(-1, meanings.shape[1]))

    def convert(self, raw: np.ndarray, scales: np.ndarray, target: np.ndarray, piece: Piece, rows: range) -> None:
        """Implement `Dequantiser`; all arrays are uint8 [bytes]."""
        out = rows_in(target, piece, rows, self._dtype)
        groups, leading = scales_of(piece).grid[1], out.shape[:-1]
        stored, exponents = raw.reshape(*leading, groups, -1), scales.reshape(*leading, groups, 1)
        convert = self._convert_transposed if piece.operation == "transpose" else self._convert_rows
        convert(stored, exponents, out)

    def _convert_rows(self, stored: np.ndarray, exponents: np.ndarray, out: np.ndarray) -> None:
        """Convert [rows, groups, bytes] and exponents [rows, groups, 1] to `out` [rows, values]; or pairs of rows."""
        step = max(1, _BYTES_AT_ONCE // stored[0].size)
        for at in range(0, len(out), step):
            index = stored[at : at + step] + (exponents[at : at + step].astype(np.uint16) << 8)
            out[at : at + step] = self._table.take(index, axis=0, mode="clip").reshape(out[at : at + step].shape)

    def _convert_transposed(self, stored: np.ndarray, exponents: np.ndarray, out: np.ndarray) -> None:
        """Transpose bytes, which are fewer than values; the values of one byte lie in neighbouring rows of the slot."""
        rows, groups, group_bytes = stored.shape
        values_per_byte = self._table.shape[1]
        step = max(1, _BYTES_AT_ONCE // (rows * group_bytes))
        for at in range(0, groups, step):
            transposed = exponents[:, at : at + step].transpose(1, 2, 0)
            index = stored[:, at : at + step].transpose(1, 2, 0) + (transposed.astype(np.uint16) << 8)
            found = self._table.take(index.reshape(-1, rows), axis=0, mode="clip")
            own = out.T[at * group_bytes * values_per_byte :][: values_per_byte * len(found)]
            for number in range(values_per_byte):
                own[number::values_per_byte] = found[..., number]


def scale_values(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Return stored scales, `raw` uint8 [bytes], as float32 [scales].

    NaNs become the plain one, so that rounding cannot carry their bits away.
    """
    if dtype in _EXPONENTS:
        last = np.inf if dtype == BYTE else np.nan
        return np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.float32(last))[raw]
    values = cast(raw.view(NUMPY_DTYPES[dtype]), dtype, "float32")
    return np.where(np.isnan(values), np.float32(np.nan), values)


def unpack(coding: Coding, stored: list[np.ndarray], target: np.ndarray, piece: Piece, dtype: str) -> None:
    """Write the values of a packed matrix into `target`, uint8 [bytes]: the piece's place in a slot of `dtype`.

    `stored`: the bytes of its inputs, uint8, in the order of the coding.
    """
    parts, step = coding.pack(dict(zip(coding.inputs, stored, strict=True))), max(1, _BYTES_AT_ONCE // 2)
    rows, columns = piece.source_shape
    count = max(1, step // columns)
    for at in range(0, rows, count):
        own = range(at, min(at + count, rows))
        rows_in(target, piece, own, dtype)[:] = cast(unpack_rows(coding.packing, parts, own), "float32", dtype)


_MAGNITUDES: dict[str, tuple[type[np.uint16] | type[np.uint32], int]] = {
    "float32": (np.uint32, 0x7F800000),
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
}
"""Integers as wide as a float of each type, and infinity without its sign: larger magnitudes are NaN."""


def has_nan(raw: np.ndarray, scale_dtype: str) -> bool:
    """Return whether one of the stored scales, `raw` uint8 [bytes], is NaN; `scale_dtype` as in `Packing`."""
    if scale_dtype == EXPONENT:
        return bool((raw == 255).any())
    if scale_dtype == FLOAT8_SCALE:
        return bool(((raw & 127) == 127).any())
    bits, infinity = _MAGNITUDES[scale_dtype]
    magnitudes = raw.view(bits) & bits(2 ** (8 * bits().itemsize - 1) - 1)
    return bool(magnitudes.max(initial=0) > infinity)
