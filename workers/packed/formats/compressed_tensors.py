"""Matrices as compressed-tensors stores them (llm-compressor writes them): packed integers, plain ones, NVFP4, MXFP4.

Bits and groups follow from the shapes of the tensors. FP8 weights are read as block FP8 is, and are none of these.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..coding import Coding, Facts, Input
from ..packing import EXPONENT, FLOAT4, FLOAT8_SCALE, INT4, INT8, Packing
from .common import grid_of, groups_of, held_dtype, plain, require_shape

_NVFP4_GROUP, _MXFP4_GROUP = 16, 32


def read_compressed_tensors(stored: Mapping[str, Facts], shape: list[int]) -> Coding | None:
    """Implement `Reader`."""
    if packed := stored.get("weight_packed"):
        return _floats(stored, packed, shape) if packed.dtype in ("U8", "uint8") else _words(stored, packed, shape)
    weight = stored.get("weight")
    return _bytes(stored, weight, shape) if weight and weight.dtype in ("I8", "int8") else None


def _words(stored: Mapping[str, Facts], packed: Facts, shape: list[int]) -> Coding:
    """Read integers in 32-bit words: 4 or 8 bits, each code above zero by half its range."""
    rows, columns = shape
    require_shape(packed, rows)
    bits = _bits(columns, packed.shape[1])
    form, row_bytes = (INT4, columns // 2) if bits == 4 else (INT8, columns)
    if bits == 4 and columns % 2:
        raise ValueError(f"has an odd number of columns, {columns}, in 4 bits")
    padded = 4 * packed.shape[1] != row_bytes
    repack = "cut signed" if bits == 8 else "cut" if padded else ""
    codes = Input("weight_packed", packed.shape, "int32", [rows, row_bytes], "uint8", repack)
    return _grouped(stored, shape, form, codes)


def _bits(columns: int, words: int) -> int:
    found = [bits for bits in (4, 8) if -(-columns * bits // 32) == words]
    if not found:
        raise ValueError(f"has {words} words for {columns} columns, which are not 4 or 8 bits each")
    return found[0]


def _bytes(stored: Mapping[str, Facts], weight: Facts, shape: list[int]) -> Coding:
    """Read plain signed bytes."""
    require_shape(weight, shape[0])
    codes = Input("weight", weight.shape, "uint8", list(shape), "uint8")
    return _grouped(stored, shape, INT8, codes)


def _grouped(stored: Mapping[str, Facts], shape: list[int], form: str, codes: Input) -> Coding:
    """Add scales, zero points and the order of columns to integer codes."""
    scales = stored.get("weight_scale")
    if scales is None:
        raise ValueError("has no weight_scale")
    grid = grid_of(scales, shape)
    inputs = {"codes": codes, "scales": plain("weight_scale", scales, grid)}
    if zeros := stored.get("weight_zero_point"):
        inputs["zeros"] = _zeros(zeros, grid, form)
    if order := stored.get("weight_g_idx"):
        inputs["order"] = plain("weight_g_idx", order, [shape[1]])
    group_rows, group_columns = groups_of(grid, shape)
    packing = Packing(
        parameter="",
        format=form,
        rows=shape[0],
        columns=shape[1],
        codes="codes",
        scales="scales",
        scale_dtype=held_dtype(scales.dtype),
        group_rows=group_rows,
        group_columns=group_columns,
        zeros="zeros" if "zeros" in inputs else "",
        order="order" if "order" in inputs else "",
    )
    return Coding(packing, inputs)


def _zeros(zeros: Facts, grid: list[int], form: str) -> Input:
    """Read zero points: packed along the rows like the codes, or plain signed bytes."""
    if zeros.dtype in ("I8", "int8"):
        if form == INT4:
            raise ValueError("has zero points in bytes, but codes in 4 bits")
        return Input("weight_zero_point", zeros.shape, "int8", grid, "int8")
    per_word = 8 if form == INT4 else 4
    if zeros.dtype not in ("I32", "int32") or zeros.shape != [-(-grid[0] // per_word), grid[1]]:
        raise ValueError(f"has zero points in {zeros.dtype} of shape {zeros.shape}, its scales are {grid}")
    if form == INT4:
        return Input("weight_zero_point", zeros.shape, "int32", grid, "uint8", "zeros of rows")
    return Input("weight_zero_point", zeros.shape, "int32", grid, "int8", "byte zeros of rows")


def _floats(stored: Mapping[str, Facts], packed: Facts, shape: list[int]) -> Coding:
    """Read 4-bit floats: NVFP4 with scales in e4m3 under one for the tensor, or MXFP4 with exponents."""
    rows, columns = shape
    scales = stored.get("weight_scale")
    if packed.shape != [rows, columns // 2] or columns % 2 or scales is None:
        raise ValueError(f"has 4-bit floats of shape {packed.shape} for {rows} x {columns} values, or no scales")
    whole = stored.get("weight_global_scale")
    group, scale_dtype = (_MXFP4_GROUP, EXPONENT) if whole is None else (_NVFP4_GROUP, FLOAT8_SCALE)
    if scales.shape != [rows, columns // group] or held_dtype(scales.dtype, scale_dtype) != scale_dtype:
        raise ValueError(f"has scales in {scales.dtype} of shape {scales.shape} for groups of {group}")
    inputs = {
        "codes": Input("weight_packed", packed.shape, "uint8", packed.shape, "uint8"),
        "scales": Input("weight_scale", scales.shape, "uint8", scales.shape, "uint8"),
    }
    if whole is not None:
        inputs["tensor_scale"] = plain("weight_global_scale", whole, [1])
    packing = Packing(
        parameter="",
        format=FLOAT4,
        rows=rows,
        columns=columns,
        codes="codes",
        scales="scales",
        scale_dtype=scale_dtype,
        group_columns=group,
        tensor_scale="tensor_scale" if whole is not None else "",
    )
    return Coding(packing, inputs)
