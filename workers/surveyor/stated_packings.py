"""Packings by a `quantization_config` alone: the sizes of packed experts before any weight is present."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ..checkpoint.layout import Region, block_for, place, region_bytes
from ..checkpoint.survey import ModelSizes, SlotTensor
from ..packed.packing import EXPONENT, FLOAT4, FLOAT8, FLOAT8_SCALE, INT4, INT8, Packing
from .expert_tensors import packed_regions

_MXFP4_COLUMNS = 32
_FP8_BLOCK = [128, 128]
_GROUP = [1, 32]
"""Rows and columns that share an exponent (OCP Microscaling Formats: MXFP4, MXFP8)."""


def stated_bytes(quantised: dict[str, Any], tensors: list[SlotTensor]) -> int:
    """Return the bytes of an expert's tensors in the files, with zero points as slots hold them (a byte each)."""
    total = 0
    for tensor in tensors:
        packing = _stated(quantised, tensor)
        regions = packed_regions(packing) if packing else [Region(tensor.name, tensor.shape, tensor.dtype)]
        total += sum(region_bytes(region.shape, region.dtype) for region in regions)
    return total


def pack_sizes(sizes: ModelSizes, quantised: dict[str, Any]) -> ModelSizes:
    """Return the sizes with the matrices of experts packed; as they are if the configuration does not define how."""
    packings = [own for tensor in sizes.tensors if (own := _stated(quantised, tensor)) is not None]
    if not packings:
        return sizes
    by_name = {packing.parameter: packing for packing in packings}
    kinds = [[own for own in sizes.tensors if own.kind == kind] for kind in range(sizes.kinds)]
    regions = [[region for tensor in own for region in _regions(tensor, by_name)] for own in kinds]
    block_bytes = block_for(max(sum(region_bytes(one.shape, one.dtype) for one in own) for own in regions))
    placed = [place(own, block_bytes) for own in regions]
    tensors = [replace(tensor, kind=kind) for kind, (own, _) in enumerate(placed) for tensor in own]
    stride_bytes = max(stride_bytes for _, stride_bytes in placed)
    return replace(sizes, tensors=tensors, packings=packings, stride_bytes=stride_bytes, block_bytes=block_bytes)


def _regions(tensor: SlotTensor, packings: dict[str, Packing]) -> list[Region]:
    if tensor.name in packings:
        return packed_regions(packings[tensor.name])
    return [Region(tensor.name, tensor.shape, tensor.dtype)]


def _stated(quantised: dict[str, Any], tensor: SlotTensor) -> Packing | None:
    """Return how the configuration says that a parameter is stored; None for vectors, and where it does not say."""
    if len(tensor.shape) != 2:
        return None
    match quantised.get("quant_method"):
        case "mxfp4":  # gpt-oss, whose parameters are the transposes of what is stored
            return _packing(tensor, FLOAT4, EXPONENT, _GROUP, transposed=True)
        case "fp8":
            return _packing(tensor, FLOAT8, "float32", quantised.get("weight_block_size") or _FP8_BLOCK)
        case "mxfp8":
            return _packing(tensor, FLOAT8, EXPONENT, quantised.get("weight_block_size") or _GROUP)
        case "gptq" | "awq":
            packing = _packing(tensor, INT4, "float16", [1, _group_size(quantised, tensor)])
            order = f"{tensor.name}.order" if quantised.get("desc_act") else ""
            return replace(packing, zeros=f"{tensor.name}.zeros", order=order)
        case "compressed-tensors":
            return _compressed(next(iter(quantised["config_groups"].values()))["weights"], tensor)
    return None


def _group_size(stated: dict[str, Any], tensor: SlotTensor) -> int:
    """Return the columns that share a scale; all of them if the configuration names no number."""
    size = stated.get("group_size") or -1
    return size if size > 0 else tensor.shape[1]


def _compressed(weights: dict[str, Any], tensor: SlotTensor) -> Packing:
    """Return the packing of the first group of layers of compressed-tensors; another may have more bits."""
    block = list(tensor.shape) if weights.get("strategy") == "tensor" else [1, _group_size(weights, tensor)]
    if weights.get("type") == "int":
        packing = _packing(tensor, INT4 if weights["num_bits"] == 4 else INT8, tensor.dtype, block)
        return packing if weights.get("symmetric", True) else replace(packing, zeros=f"{tensor.name}.zeros")
    if weights["num_bits"] == 8:
        stated = weights.get("block_structure")
        return _packing(tensor, FLOAT8, "float32", stated if isinstance(stated, list) else block)
    if block[1] == _MXFP4_COLUMNS:
        return _packing(tensor, FLOAT4, EXPONENT, block)
    return replace(_packing(tensor, FLOAT4, FLOAT8_SCALE, block), tensor_scale=f"{tensor.name}.tensor_scale")


def _packing(tensor: SlotTensor, form: str, scale_dtype: str, block: list[int], transposed: bool = False) -> Packing:
    rows, columns = tensor.shape[::-1] if transposed else tensor.shape
    return Packing(
        parameter=tensor.name,
        format=form,
        rows=rows,
        columns=columns,
        codes=f"{tensor.name}.codes",
        scales=f"{tensor.name}.scales",
        scale_dtype=scale_dtype,
        group_rows=block[0],
        group_columns=block[1],
        transposed=transposed,
        kind=tensor.kind,
    )
