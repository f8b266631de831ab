"""Unpacks rows of a packed matrix with numpy, for reader threads and for the skeleton; torch has its own on devices."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .packing import EXPONENT, FLOAT4, FLOAT8, FLOAT8_SCALE, INT4, SYMMETRIC_ZERO, Packing
from .values import float4_pairs, float8_values

Parts = Mapping[str, np.ndarray]


def unpack_rows(packing: Packing, parts: Parts, rows: range) -> np.ndarray:
    """Return float32 [rows, columns]. `parts`: the slot tensors of the whole matrix by name (bfloat16: uint16)."""
    values = _codes(packing, parts[packing.codes][rows.start : rows.stop])
    groups = np.arange(rows.start, rows.stop) // packing.group_rows
    columns = _groups_of_columns(packing, parts)
    if packing.zeros:
        values -= parts[packing.zeros].astype(np.float32)[groups][:, columns]
    elif zero := SYMMETRIC_ZERO.get(packing.format):
        values -= np.float32(zero)
    with np.errstate(over="ignore", invalid="ignore"):
        values *= _scales(packing, parts)[groups][:, columns]
    return values


def _groups_of_columns(packing: Packing, parts: Parts) -> np.ndarray:
    if packing.order:
        return parts[packing.order]
    return np.arange(packing.columns) // (packing.group_columns or packing.columns)


def _codes(packing: Packing, stored: np.ndarray) -> np.ndarray:
    """Return the codes of some rows as float32 [rows, columns]."""
    if packing.format == FLOAT8:
        return float8_values()[stored]
    if packing.format == FLOAT4:
        return float4_pairs()[stored].reshape(len(stored), -1)
    if packing.format == INT4:
        return np.stack([stored & 15, stored >> 4], axis=-1).reshape(len(stored), -1).astype(np.float32)
    return stored.view(np.int8).astype(np.float32)


def _scales(packing: Packing, parts: Parts) -> np.ndarray:
    """Return float32 [row groups, column groups]."""
    scales = scale_values(parts[packing.scales], packing.scale_dtype)
    if not packing.tensor_scale:
        return scales
    divisors = parts[packing.tensor_scale]
    return scales / np.repeat(divisors, len(scales) // len(divisors))[:, None]


def scale_values(stored: np.ndarray, scale_dtype: str) -> np.ndarray:
    """Return stored scales as float32, of the same shape; `scale_dtype` as in `Packing`."""
    if scale_dtype == EXPONENT:
        return np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.float32(np.nan)).astype(np.float32)[stored]
    if scale_dtype == FLOAT8_SCALE:
        return float8_values()[stored]
    if scale_dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)
