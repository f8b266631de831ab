"""Matrices as GPTQ (AutoGPTQ, GPTQModel) and AWQ (AutoAWQ) store them: words of eight 4-bit codes, inputs by rows.

A value is `(code - zero) * scale`. GPTQ's first version stores each zero point less one; `g_idx` is the group of each
input, which with act-order is not its place divided by the size of a group.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..coding import Coding, Facts, Input
from ..packing import INT4, Packing
from .common import held_dtype, plain


def read_gptq(stored: Mapping[str, Facts], shape: list[int]) -> Coding | None:
    """Implement `Reader` for the first version."""
    return _gptq(stored, shape, "gptq zeros less one")


def read_gptq_v2(stored: Mapping[str, Facts], shape: list[int]) -> Coding | None:
    """Implement `Reader` for the second version (`checkpoint_format` gptq_v2)."""
    return _gptq(stored, shape, "gptq zeros")


def _gptq(stored: Mapping[str, Facts], shape: list[int], zeros_as: str) -> Coding | None:
    if "qweight" not in stored:
        return None
    rows, columns = shape
    _require(stored, "qweight", [columns // 8, rows])
    codes = Input("qweight", [columns // 8, rows], "int32", [rows, columns // 2], "uint8", "gptq codes")
    coding = _coding(stored, shape, codes, zeros_as)
    if "g_idx" not in stored:
        return coding
    inputs = {**coding.inputs, "order": plain("g_idx", stored["g_idx"], [columns])}
    fields = {name: getattr(coding.packing, name) for name in Packing.__struct_fields__}
    return Coding(Packing(**{**fields, "order": "order"}), inputs)


def read_awq(stored: Mapping[str, Facts], shape: list[int]) -> Coding | None:
    """Implement `Reader`."""
    if "qweight" not in stored:
        return None
    rows, columns = shape
    _require(stored, "qweight", [columns, rows // 8])
    codes = Input("qweight", [columns, rows // 8], "int32", [rows, columns // 2], "uint8", "awq codes")
    return _coding(stored, shape, codes, "awq zeros")


def _coding(stored: Mapping[str, Facts], shape: list[int], codes: Input, zeros_as: str) -> Coding:
    rows, columns = shape
    scales = stored.get("scales")
    if rows % 8 or columns % 8 or scales is None or len(scales.shape) != 2 or scales.shape[1] != rows:
        raise ValueError(f"has {rows} x {columns} values, which are not whole words, or no scales that fit them")
    groups = scales.shape[0]
    _require(stored, "qzeros", [groups, rows // 8])
    inputs = {
        "codes": codes,
        "scales": plain("scales", scales, [rows, groups], "transpose"),
        "zeros": Input("qzeros", [groups, rows // 8], "int32", [rows, groups], "uint8", zeros_as),
    }
    packing = Packing(
        parameter="",
        format=INT4,
        rows=rows,
        columns=columns,
        codes="codes",
        scales="scales",
        scale_dtype=held_dtype(scales.dtype),
        group_columns=-(-columns // groups),
        zeros="zeros",
    )
    return Coding(packing, inputs)


def _require(stored: Mapping[str, Facts], name: str, shape: list[int]) -> None:
    found = stored.get(name)
    if found is None or found.dtype not in ("I32", "int32") or found.shape != shape:
        have = "none" if found is None else f"{found.dtype} {found.shape}"
        raise ValueError(f"needs {name} in I32 {shape}, and has {have} (only 4 bits are read)")
