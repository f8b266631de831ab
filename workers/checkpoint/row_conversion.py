"""Casts raw weight bytes between float types with numpy, rounding as torch does. bfloat16 travels as uint16."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from .headers import BYTE, FLOAT8, FLOAT8_EXPONENT
from .survey import FLOAT4_PAIRS, Piece, Scales

NUMPY_DTYPES: dict[str, type] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
}

_UPPER_HALF = 1 if sys.byteorder == "little" else 0
_BYTES_AT_ONCE = 1 << 16
"""So many, and what becomes of them, stay in a core's cache from one operation to the next."""
_FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_EXPONENTS = (BYTE, FLOAT8_EXPONENT)


def row_blocks(piece: Piece, limit_bytes: int) -> list[range]:
    """The rows (first dimension in the file) of a piece in blocks of at most `limit_bytes` there, or of one row; of
    rows that alternate, pairs."""
    rows, least = piece.source_shape[0], 2 if piece.operation == "deinterleave" else 1
    step = max(1, limit_bytes * rows // piece.source_bytes // least) * least
    return [range(at, min(at + step, rows)) for at in range(0, rows, step)]


def convert_rows(raw: np.ndarray, target: np.ndarray, piece: Piece, rows: range, dtype: str) -> None:
    """Write `rows` of a piece, `raw` as in the file, to their place in `target`: its bytes in a slot of `dtype`."""
    values = cast(raw.view(NUMPY_DTYPES[piece.source_dtype]), piece.source_dtype, dtype)
    out = rows_in(target, piece, rows, dtype)
    out[:] = values.reshape(out.shape)


def rows_in(target: np.ndarray, piece: Piece, rows: range, dtype: str) -> np.ndarray:
    """The view of `rows` of a piece (as in the file) in `target`: its bytes in a slot of `dtype`.

    Shape [rows, ...]; of rows that alternate [pairs, 2, ...], and `rows` must be whole pairs.
    """
    whole = target.view(NUMPY_DTYPES[dtype])
    if piece.operation == "transpose":
        return whole.reshape(piece.source_shape[::-1])[:, rows.start : rows.stop].T
    if piece.operation == "deinterleave":
        return whole.reshape(2, -1, *piece.source_shape[1:]).swapaxes(0, 1)[rows.start // 2 : rows.stop // 2]
    return whole.reshape(piece.source_shape)[rows.start : rows.stop]


def cast(values: np.ndarray, source: str, target: str) -> np.ndarray:
    """`values` of type `source` in type `target`. Overflow gives infinity; a NaN stays one, its payload may change."""
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
    """To nearest, ties to even: half a unit is added, less one bit where the last bit that stays is zero."""
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    upper = rounded.view(np.uint16)[..., _UPPER_HALF::2]
    # The largest value is a NaN if any is: much cheaper than to look at each.
    return np.where(np.isnan(values), np.uint16(0x7FC0), upper) if np.isnan(np.max(values, initial=0)) else upper


# Dequantisation


class Dequantiser(Protocol):
    """Turns the stored rows of one kind of piece into rows of a slot."""

    def convert(self, raw: np.ndarray, scales: np.ndarray, target: np.ndarray, piece: Piece, rows: range) -> None:
        """Write `rows`, `raw` as in the file, to their place in `target`: the piece's bytes in a slot.

        `scales`: the bytes of `scale_rows(piece.scales, rows)`, as in the file. All are uint8, one-dimensional.
        """
        ...


def make_dequantiser(piece: Piece, dtype: str) -> Dequantiser:
    """For pieces like this one, into slots of `dtype`."""
    grid = scales_of(piece)
    grouped = grid.dtype in _EXPONENTS and grid.block[0] == 1 and grid.grid[1] * grid.block[1] == piece.source_shape[1]
    if piece.source_dtype == FLOAT4_PAIRS or grouped:
        return GroupDequantiser(piece.source_dtype, grid.dtype, dtype)
    return BlockDequantiser(dtype)


def scales_of(piece: Piece) -> Scales:
    """Raises ValueError for a piece that is not quantised."""
    if piece.scales is None:
        raise ValueError("the piece has no scales")
    return piece.scales


def scale_rows(scales: Scales, rows: range) -> range:
    """The rows of the grid that rows of the matrix need."""
    return range(rows.start // scales.block[0], -(-rows.stop // scales.block[0]))


class BlockDequantiser:
    """F8_E4M3 with a scale for each block of a matrix: each block has a table of its own."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._values = float8_values()

    def convert(self, raw: np.ndarray, scales: np.ndarray, target: np.ndarray, piece: Piece, rows: range) -> None:
        grid, columns = scales_of(piece), piece.source_shape[1]
        own = scale_rows(grid, rows)
        factors = scale_values(scales, grid.dtype).reshape(len(own), -1)
        # The narrowest index is the fastest: it is widened once more inside the look-up.
        narrow = np.uint16 if grid.grid[1] <= 256 else np.uint32
        starts = (np.arange(columns) // grid.block[1] * len(self._values)).astype(narrow)
        stored = raw.reshape(len(rows), columns)
        for number, factor in zip(own, factors, strict=True):
            table = self._table(factor)
            for some in _row_runs(rows, number * grid.block[0], grid.block[0], columns):
                index = stored[some.start - rows.start : some.stop - rows.start] + starts
                np.take(table, index, out=rows_in(target, piece, some, self._dtype), mode="clip")

    def _table(self, factors: np.ndarray) -> np.ndarray:
        """[blocks * 256]: what each byte means in each block of a row of blocks."""
        with np.errstate(over="ignore", invalid="ignore"):
            values = cast(np.multiply.outer(factors, self._values), "float32", self._dtype)
        return np.ascontiguousarray(values).reshape(-1)


def _row_runs(rows: range, first: int, count: int, columns: int) -> Iterator[range]:
    """Those of `rows` among `count` from `first`, some at a time."""
    step = max(1, _BYTES_AT_ONCE // columns)
    start, stop = max(rows.start, first), min(rows.stop, first + count)
    return (range(at, min(at + step, stop)) for at in range(start, stop, step))


class GroupDequantiser:
    """One exponent for each group of bytes of a row (MXFP4, MXFP8): a single table for all bytes and exponents."""

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
        out = rows_in(target, piece, rows, self._dtype)
        groups, leading = scales_of(piece).grid[1], out.shape[:-1]
        stored, exponents = raw.reshape(*leading, groups, -1), scales.reshape(*leading, groups, 1)
        convert = self._convert_turned if piece.operation == "transpose" else self._convert_rows
        convert(stored, exponents, out)

    def _convert_rows(self, stored: np.ndarray, exponents: np.ndarray, out: np.ndarray) -> None:
        """[rows, groups, bytes of a group] and [rows, groups, 1] -> [rows, values]; or pairs of rows of each."""
        step = max(1, _BYTES_AT_ONCE // stored[0].size)
        for at in range(0, len(out), step):
            index = stored[at : at + step] + (exponents[at : at + step].astype(np.uint16) << 8)
            out[at : at + step] = self._table.take(index, axis=0, mode="clip").reshape(out[at : at + step].shape)

    def _convert_turned(self, stored: np.ndarray, exponents: np.ndarray, out: np.ndarray) -> None:
        """Turns the bytes, which are the fewest; the values of one then belong to neighbouring rows of the slot."""
        rows, groups, group_bytes = stored.shape
        each = self._table.shape[1]
        step = max(1, _BYTES_AT_ONCE // (rows * group_bytes))
        for at in range(0, groups, step):
            turned = exponents[:, at : at + step].transpose(1, 2, 0)
            index = stored[:, at : at + step].transpose(1, 2, 0) + (turned.astype(np.uint16) << 8)
            found = self._table.take(index.reshape(-1, rows), axis=0, mode="clip")
            own = out.T[at * group_bytes * each :][: each * len(found)]
            for number in range(each):
                own[number::each] = found[..., number]


def scale_values(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Stored scales as float32. NaNs become the plain one, so that rounding cannot carry their bits away."""
    if dtype in _EXPONENTS:
        last = np.inf if dtype == BYTE else np.nan
        return np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.float32(last))[raw]
    values = cast(raw.view(NUMPY_DTYPES[dtype]), dtype, "float32")
    return np.where(np.isnan(values), np.float32(np.nan), values)


def float8_values() -> np.ndarray:
    """float32 [256]: what each byte means as e4m3 without infinities (OCP FP8): bias 7, all ones are NaN."""
    codes = np.arange(128)
    exponents, fractions = codes >> 3, codes & 7
    significands = np.where(exponents > 0, fractions + 8, fractions)
    positive = np.ldexp(significands, np.maximum(exponents, 1) - 10).astype(np.float32)
    positive[127] = np.nan
    return np.concatenate([positive, -positive])


def float4_pairs() -> np.ndarray:
    """float32 [256, 2]: the two e2m1 values of each byte, low bits first."""
    values = np.array([*_FLOAT4, *(-value for value in _FLOAT4)], dtype=np.float32)
    codes = np.arange(256)
    return np.stack([values[codes & 15], values[codes >> 4]], axis=1)
