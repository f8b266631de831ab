"""Shared parts of the formats: types of scales, and the rows and columns that each scale covers."""

from __future__ import annotations

import math

from ..coding import Facts, Input
from ..packing import EXPONENT, FLOAT8_SCALE

_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TORCH = {"float8_e4m3fn": FLOAT8_SCALE, "float8_e8m0fnu": EXPONENT}
_HELD = {"F8_E4M3": FLOAT8_SCALE, "F8_E8M0": EXPONENT, **_FLOATS, **_TORCH}


def held_dtype(dtype: str, byte: str = "") -> str:
    """Return the type of scales as `Packing` names it. `byte`: what a plain byte is."""
    name = byte if dtype in ("U8", "uint8") and byte else _HELD.get(dtype, dtype)
    if name not in ("float32", "float16", "bfloat16", FLOAT8_SCALE, EXPONENT):
        raise ValueError(f"has scales in {dtype}")
    return name


def plain(suffix: str, facts: Facts, shape: list[int], repack: str = "") -> Input:
    """Return an input whose values stay as they are, floats or groups of columns; `shape`: in the slot."""
    held = "int32" if suffix.endswith("g_idx") and facts.dtype in ("I32", "int32") else held_dtype(facts.dtype)
    if math.prod(facts.shape) != math.prod(shape):
        raise ValueError(f"has {suffix} of shape {facts.shape}, not {shape}")
    return Input(suffix, facts.shape, "uint16" if held == "bfloat16" else held, shape, held, repack)


def grid_of(scales: Facts, shape: list[int]) -> list[int]:
    """Return rows and columns of a grid of scales; a single one covers the whole matrix."""
    grid = list(scales.shape) if len(scales.shape) == 2 else [scales.shape[0] if scales.shape else 1, 1]
    if any(count < 1 or count > size for count, size in zip(grid, shape, strict=True)):
        raise ValueError(f"has scales of shape {scales.shape} for {shape[0]} x {shape[1]} values")
    return grid


def groups_of(grid: list[int], shape: list[int]) -> tuple[int, int]:
    """Return rows and columns that one scale covers."""
    if any(size % count for count, size in zip(grid, shape, strict=True)):
        raise ValueError(f"has scales of shape {grid}, which do not divide its shape {shape}")
    return shape[0] // grid[0], shape[1] // grid[1]


def require_shape(facts: Facts, rows: int) -> None:
    """Raise ValueError unless codes are a matrix of so many rows."""
    if len(facts.shape) != 2 or facts.shape[0] != rows:
        raise ValueError(f"has codes of shape {facts.shape}, not of {rows} rows")
