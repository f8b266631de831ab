"""How many bytes an expert takes in files whose weights are quantised, as far as the configuration says it."""

from __future__ import annotations

import math
from typing import Any

from ..checkpoint.survey import SlotTensor

MXFP4_GROUP = 32
"""Values that share a scale of one byte (OCP Microscaling Formats, MXFP4); two values a byte."""
FP8_BLOCK = [128, 128]
FP8_SCALE_BYTES = 4
MXFP8_BLOCK = [1, 32]
MXFP8_SCALE_BYTES = 1
"""An exponent for each group of a row (OCP Microscaling Formats, MXFP8); a value a byte."""


def stored_bytes(quantised: dict[str, Any], tensors: list[SlotTensor]) -> int:
    """Bytes of an expert's `tensors` in the files; 0 if the configuration does not say how they are quantised.

    `quantised` is the quantization_config of config.json, empty for weights as they are computed with. Vectors (biases)
    are never quantised.
    """
    match quantised.get("quant_method"):
        case None:
            return sum(tensor.count_bytes for tensor in tensors)
        case "mxfp4":
            return sum(_mxfp4_bytes(tensor) for tensor in tensors)
        case "fp8":
            block = quantised.get("weight_block_size") or FP8_BLOCK
            return sum(_fp8_bytes(tensor, block, FP8_SCALE_BYTES) for tensor in tensors)
        case "mxfp8":
            block = quantised.get("weight_block_size") or MXFP8_BLOCK
            return sum(_fp8_bytes(tensor, block, MXFP8_SCALE_BYTES) for tensor in tensors)
    return 0


def _mxfp4_bytes(tensor: SlotTensor) -> int:
    values = math.prod(tensor.shape)
    return values // 2 + values // MXFP4_GROUP if len(tensor.shape) > 1 else tensor.count_bytes


def _fp8_bytes(tensor: SlotTensor, block: list[int], scale_bytes: int) -> int:
    if len(tensor.shape) == 1:
        return tensor.count_bytes
    scales = math.prod(math.ceil(extent / size) for extent, size in zip(tensor.shape, block, strict=True))
    return math.prod(tensor.shape) + scale_bytes * scales
