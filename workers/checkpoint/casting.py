"""Casts raw weight bytes between float types with numpy, rounding as torch does. bfloat16 travels as uint16."""

from __future__ import annotations

import sys

import numpy as np

from .survey import Piece

NUMPY_DTYPES: dict[str, type] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
}

_UPPER_HALF = 1 if sys.byteorder == "little" else 0


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
