"""Casts raw weight bytes between float types with numpy, rounding to nearest even as torch does. bfloat16 travels as uint16."""

from __future__ import annotations

import numpy as np

from .survey import Piece

_NUMPY = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


def convert_piece(raw: np.ndarray, piece: Piece, dtype: str) -> np.ndarray:
    """The slot bytes (uint8) of a piece from its file bytes (uint8): transposed if it says so, in `dtype`."""
    values = raw.view(_NUMPY[piece.source_dtype])
    if piece.operation == "transpose":
        values = np.ascontiguousarray(values.reshape(piece.source_shape).T)
    return cast(values, piece.source_dtype, dtype).reshape(-1).view(np.uint8)


def cast(values: np.ndarray, source: str, target: str) -> np.ndarray:
    """`values` of type `source` in type `target`."""
    if source == target:
        return values
    wide = _widen_bfloat16(values) if source == "bfloat16" else values
    if target != "bfloat16":
        with np.errstate(over="ignore"):
            return wide.astype(_NUMPY[target])
    return _round_to_bfloat16(wide.astype(np.float32))


def _widen_bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.uint32) << 16).view(np.float32)


def _round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
