"""Slot tensors of the experts of one layer, and the stored parts of each: dequantised, or packed as they are stored.

A matrix is packed if a slot can hold its codes and scales by a copy of their bytes: the parts of a parameter (gate and
up) are stored alike, and groups of rows do not span two of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from ..checkpoint.gguf.block_types import BLOCK_TYPES
from ..checkpoint.headers import BYTE, FLOAT8, FLOAT8_EXPONENT, SLOT_BYTES
from ..checkpoint.layout import Region
from ..checkpoint.survey import FLOAT4_PAIRS
from ..packed.coding import Coding
from ..packed.packing import EXPONENT, FLOAT8_SCALE, GGUF_BLOCKS, Packing
from ..packed.packing import FLOAT4 as FLOAT4_FORMAT
from ..packed.packing import FLOAT8 as FLOAT8_FORMAT
from .conversions import ExpertPart

_FORMATS = {FLOAT8: FLOAT8_FORMAT, FLOAT4_PAIRS: FLOAT4_FORMAT}
_SCALES = {BYTE: EXPONENT, FLOAT8_EXPONENT: EXPONENT, FLOAT8: FLOAT8_SCALE}
_IN_SLOT = {EXPONENT: "uint8", FLOAT8_SCALE: "uint8", "float64": "float32"}
"""Type of a slot tensor of scales, where it is not that of the scales."""


class ExpertTensor(NamedTuple):
    """Slot tensor of an expert and the stored parts that fill it, one after the other."""

    region: Region
    parts: list[ExpertPart]
    kind: int = 0
    check: str = ""
    """Type of the scales that it holds; none of them may be NaN."""


class LayerTensors(NamedTuple):
    """Slot tensors of a layer's experts, and how those of packed matrices become values."""

    tensors: list[ExpertTensor]
    packings: list[Packing]


Parameter = tuple[str, list[int], int]
"""Name, shape of one expert, and kind."""


def dequantised(parameters: list[Parameter], parts: list[list[ExpertPart]], dtype: str) -> LayerTensors:
    """Return one slot tensor a parameter, in the type that is computed in."""
    named = zip(parameters, parts, strict=True)
    return LayerTensors([ExpertTensor(Region(name, shape, dtype), own, kind) for (name, shape, kind), own in named], [])


def packed(parameters: list[Parameter], parts: list[list[ExpertPart]], dtype: str) -> LayerTensors:
    """Return the same with every quantised matrix packed. Raises ValueError, with the reason, if one cannot be."""
    tensors: list[ExpertTensor] = []
    packings: list[Packing] = []
    for (name, shape, kind), own in zip(parameters, parts, strict=True):
        if any(part.coding is not None for part in own):
            packing, held = _coded(name, shape, own)
            packings.append(msgspec.structs.replace(packing, kind=kind))
            tensors += [tensor._replace(kind=kind) for tensor in held]
            continue
        if any(part.dtype in BLOCK_TYPES for part in own):
            packing, codes = _in_blocks(name, shape, own)
            packings.append(msgspec.structs.replace(packing, kind=kind))
            tensors.append(codes._replace(kind=kind))
            continue
        if all(part.scales is None for part in own):
            tensors.append(ExpertTensor(Region(name, shape, dtype), own, kind))
            continue
        packing = _packing(name, shape, own)
        packings.append(msgspec.structs.replace(packing, kind=kind))
        tensors += [tensor._replace(kind=kind) for tensor in _tensors(packing, own)]
    return LayerTensors(tensors, packings)


def is_quantised(parts: list[list[ExpertPart]]) -> bool:
    """Return whether any parameter has scales, of its own or in blocks."""
    every = [part for own in parts for part in own]
    return any(part.scales is not None or part.coding is not None or part.dtype in BLOCK_TYPES for part in every)


def _in_blocks(name: str, shape: list[int], parts: list[ExpertPart]) -> tuple[Packing, ExpertTensor]:
    """Return how a matrix in blocks of GGUF is packed, and the slot tensor that holds it."""
    first = parts[0]
    if len({(part.dtype, part.shape[1]) for part in parts}) > 1:
        raise ValueError(f"parts of {name} are stored in different ways")
    if first.dtype not in GGUF_BLOCKS or len(shape) != 2:
        raise ValueError(f"{name} is stored as {first.dtype}")
    transposed = first.rearranged == "transpose"
    rows, columns = shape[::-1] if transposed else shape
    codes = f"{name}.codes"
    packing = Packing(
        parameter=name, format=first.dtype, rows=rows, columns=columns, codes=codes, transposed=transposed
    )
    held = [
        ExpertPart([part.shape[0], packing.row_bytes], "uint8", part.at, every=part.every, first=part.first)
        for part in parts
    ]
    return packing, ExpertTensor(Region(codes, [rows, packing.row_bytes], "uint8"), held)


def _coded(name: str, shape: list[int], parts: list[ExpertPart]) -> tuple[Packing, list[ExpertTensor]]:
    """Return how a matrix whose parts have codings is packed, and the slot tensors that hold it."""
    codings = [part.coding for part in parts if part.coding is not None]
    first = codings[0]
    if len(codings) < len(parts) or any(not _are_alike(first, other) for other in codings):
        raise ValueError(f"parts of {name} are stored in different ways")
    one = first.packing
    if any(coding.packing.rows % one.group_rows for coding in codings[:-1]):
        raise ValueError(f"a scale of {name} covers rows of two stored matrices")
    transposed = parts[0].rearranged == "transpose"
    rows, columns = shape[::-1] if transposed else shape
    names = {role: f"{name}.{role}" for role in first.inputs}
    packing = msgspec.structs.replace(one, parameter=name, rows=rows, columns=columns, transposed=transposed, **names)
    return packing, [_coded_tensor(packing, role, parts) for role in first.inputs]


def _are_alike(first: Coding, other: Coding) -> bool:
    same_rows = msgspec.structs.replace(other.packing, rows=first.packing.rows)
    return same_rows == first.packing and list(first.inputs) == list(other.inputs)


def _coded_tensor(packing: Packing, role: str, parts: list[ExpertPart]) -> ExpertTensor:
    """Return the slot tensor of one role: the rows of all parts, one after the other, but the order of columns once."""
    held: list[ExpertPart] = []
    for part in parts:
        inputs = part.coding.inputs if part.coding else {}
        one = inputs[role]
        held.append(ExpertPart(one.shape, one.dtype, part.inputs_at[list(inputs).index(role)], input=one))
    if role == "order":  # gate and up have the same: their inputs were the same when it was chosen
        held = [msgspec.structs.replace(held[0], inputs_at=[part.at for part in held[1:]])]
    targets = [part.input.target_shape for part in held if part.input]
    first = next(part.input for part in held if part.input)
    shape = [sum(target[0] for target in targets), *targets[0][1:]]
    region = Region(getattr(packing, role), shape, first.target_dtype)
    return ExpertTensor(region, held, check=packing.scale_dtype if role == "scales" else "")


def _packing(name: str, shape: list[int], parts: list[ExpertPart]) -> Packing:
    first = parts[0]
    scales = _alike(name, parts)
    transposed = first.rearranged == "transpose"
    if transposed and [sum(part.shape[0] for part in parts), first.shape[1]] != shape[::-1]:
        raise ValueError(f"{name} is stored in another shape than its transpose")
    rows, columns = shape[::-1] if transposed else shape
    return Packing(
        parameter=name,
        format=_FORMATS[first.dtype],
        rows=rows,
        columns=columns,
        codes=f"{name}.codes",
        scales=f"{name}.scales",
        scale_dtype=_SCALES.get(scales.dtype, _IN_SLOT.get(scales.dtype, scales.dtype)),
        group_rows=first.block[0],
        group_columns=first.block[1],
        transposed=transposed,
    )


def _alike(name: str, parts: list[ExpertPart]) -> ExpertPart:
    """Return the scales of the first part, if all parts are stored alike and none shares a group of rows."""
    kinds = {(part.dtype, part.scales.dtype if part.scales else "", part.shape[1], *part.block) for part in parts}
    if len(kinds) > 1:
        raise ValueError(f"parts of {name} are stored in different ways")
    if any(part.shape[0] % part.block[0] for part in parts[:-1]):
        raise ValueError(f"a scale of {name} covers rows of two stored matrices")
    scales = parts[0].scales
    if scales is None or parts[0].dtype not in _FORMATS or len(parts[0].shape) != 2:
        raise ValueError(f"{name} is stored as {parts[0].dtype}")
    return scales


def _tensors(packing: Packing, parts: list[ExpertPart]) -> list[ExpertTensor]:
    """Return the slot tensors of a packed matrix: rows of codes and of scales lie one after the other."""
    codes, scales = packed_regions(packing)
    stored = [_raw(part, [part.shape[0], packing.row_bytes]) for part in parts]
    grids = [_scales(part, scales.dtype) for part in parts]
    return [ExpertTensor(codes, stored), ExpertTensor(scales, grids, check=packing.scale_dtype)]


def packed_regions(packing: Packing) -> list[Region]:
    """Return the tensors that hold a packed matrix in a slot."""
    dtype = _IN_SLOT.get(packing.scale_dtype, packing.scale_dtype)
    grid = list(packing.grid)
    regions = [Region(packing.codes, [packing.rows, packing.row_bytes], "uint8"), Region(packing.scales, grid, dtype)]
    if packing.zeros:
        regions.append(Region(packing.zeros, grid, "uint8"))
    if packing.tensor_scale:
        regions.append(Region(packing.tensor_scale, [1], "float32"))
    return [*regions, Region(packing.order, [packing.columns], "int32")] if packing.order else regions


def _raw(part: ExpertPart, shape: list[int]) -> ExpertPart:
    rearranged = "" if part.rearranged == "transpose" else part.rearranged
    return ExpertPart(shape, "uint8", part.at, rearranged)


def _scales(part: ExpertPart, dtype: str) -> ExpertPart:
    scales = part.scales
    if scales is None:
        raise ValueError("the part has no scales")
    alternating = part.rearranged == "deinterleave" and math.prod(scales.shape) > 1
    held = scales.dtype if scales.dtype in SLOT_BYTES else dtype
    return ExpertPart(scales.shape, held, scales.at, "deinterleave" if alternating else "")
