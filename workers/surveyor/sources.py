"""Sources of a parameter: stored tensors and operations by transformers' loading rules, and their scales."""

from __future__ import annotations

from typing import Any

import msgspec
from transformers.core_model_loading import (
    Concatenate,
    ErnieFuseAndSplitTextVisionExperts,
    MergeModulelist,
    Transpose,
)
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import Mxfp4Dequantize

from ...errors import CheckpointError
from ..checkpoint.headers import SIGNED_BYTE, StoredTensor
from ..checkpoint.quantisation_config import UNQUANTISED
from ..checkpoint.survey import FLOAT4_PAIRS
from ..model.quantizers.coded import DequantizeCoded
from ..packed.coding import Coding, Facts
from ..packed.formats.reading import code

SCALE_SUFFIX = "_scale_inv"


class Alternate:
    """Operation on several stored tensors: rows of the parameter come from each of them in turn (GGUF, gpt-oss)."""


class ParameterSource(msgspec.Struct):
    """Stored tensors of a model parameter by source pattern, in the library's order, and their operations."""

    patterns: list[str]
    operations: list[Any]
    stored: dict[str, list[StoredTensor]]
    scales: ParameterSource | None = None
    """Scales that are stored under a name of their own beside the parameter's (`gate_up_proj_scale_inv`)."""
    stated_block: list[int] | None = None
    """Rows and columns of a block of such scales, by config.json."""
    share: tuple[int, int] = (0, 1)
    """Index of this parameter and number of all that one rule makes of these tensors."""

    def tensors(self) -> list[StoredTensor]:
        """Return all stored tensors, scales included."""
        own = [tensor for part in self.stored.values() for tensor in part]
        return own + (self.scales.tensors() if self.scales else [])


def own_share(source: ParameterSource) -> ParameterSource:
    """Return the source with only its own experts, where one rule divides experts among several parameters."""
    match source.operations:
        case [ErnieFuseAndSplitTextVisionExperts(stack_dim=0, concat_dim=1)]:
            operations = [MergeModulelist(dim=0), Concatenate(dim=1)]
            stored = {pattern: _take_share(tensors, *source.share) for pattern, tensors in source.stored.items()}
            return ParameterSource(source.patterns, operations, stored)
        case _:
            return source


def _take_share(tensors: list[StoredTensor], index: int, count: int) -> list[StoredTensor]:
    share = -(-len(tensors) // count)
    return tensors[index * share : (index + 1) * share]


class Scaled(msgspec.Struct):
    """Source split in two: `weights` without the dequantising operation, their scales by the same patterns."""

    weights: ParameterSource
    scales: dict[str, list[StoredTensor]]
    stated_block: list[int] | None = None
    """Rows and columns of a block, by config.json."""
    coded: dict[str, dict[str, list[StoredTensor]]] = {}
    """Stored tensors of packed matrices by source pattern and last part of their names, instead of all others."""
    stated: dict[str, Any] = {}
    """The `quantization_config` that they are read by."""


def coding_of(name: str, stated: dict[str, Any], stored: dict[str, Facts], shape: list[int]) -> Coding | None:
    """Return how a matrix is stored, None if it is not quantised. Raises CheckpointError if it cannot be read."""
    try:
        return code(stated, stored, shape)
    except ValueError as reason:
        raise CheckpointError(
            f"is quantised in a way that is not supported: it {reason}", name, UNQUANTISED
        ) from reason


def separate_scales(source: ParameterSource) -> Scaled:
    """Split a source into weights and scales.

    Stored tensors get the shapes and types of the values they hold, however these are packed.
    """
    match source.operations:
        case [Fp8Dequantize() as operation, *others]:
            return _block_scales(source, others, operation.hf_quantizer.quantization_config.weight_block_size)
        case [DequantizeCoded() as operation, *others]:
            return _coded_or_scaled(source, others, operation.stated)
        case [Mxfp4Dequantize(), *others]:
            return _group_scales(source, others)
        case _ if source.scales and len(source.patterns) == len(source.scales.patterns) == 1:
            return _fused_scales(source, source.scales)
        case _:
            return Scaled(source, {})


def _fused_scales(source: ParameterSource, scales: ParameterSource) -> Scaled:
    """Split off one tensor with the scales of all experts: its rows lie in the file as those of the weights do."""
    pattern, own = source.patterns[0], scales.patterns[0]
    stored = {pattern: [_unpack_pairs(tensor) for tensor in source.stored.get(pattern, [])]}
    weights = ParameterSource([pattern], source.operations, stored)
    return Scaled(weights, {pattern: scales.stored.get(own, [])}, source.stated_block)


def _block_scales(source: ParameterSource, operations: list[Any], stated: Any) -> Scaled:
    named = [pattern for pattern in source.patterns if not pattern.endswith((SCALE_SUFFIX, "activation_scale"))]
    stored = {pattern: [_unpack_pairs(tensor) for tensor in source.stored.get(pattern, [])] for pattern in named}
    scales = {pattern: source.stored.get(pattern + SCALE_SUFFIX, []) for pattern in named}
    return Scaled(ParameterSource(named, operations, stored), scales, list(stated) if stated else None)


def _coded_or_scaled(source: ParameterSource, operations: list[Any], stated: dict[str, Any]) -> Scaled:
    """Sort tensors by projection. Weights that are no codes of integers have scales as block FP8 has."""
    coded: dict[str, dict[str, list[StoredTensor]]] = {}
    for pattern in source.patterns:
        if tensors := source.stored.get(pattern):
            base, _, suffix = pattern.rpartition(".")
            coded.setdefault(f"{base}.weight" if base else "weight", {})[suffix] = tensors
    if coded and all(_is_float(stored) for stored in coded.values()):
        weights = {pattern: stored.get("weight", []) for pattern, stored in coded.items()}
        scales = {pattern: stored.get("weight_scale", []) for pattern, stored in coded.items()}
        return Scaled(ParameterSource(list(coded), operations, weights), scales)
    codes = {pattern: next(iter(stored.values())) for pattern, stored in coded.items()}
    return Scaled(ParameterSource(list(coded), operations, codes), {}, coded=coded, stated=stated)


def _is_float(stored: dict[str, list[StoredTensor]]) -> bool:
    """Return whether a projection is stored as floats, of 16 bits or 8."""
    return "weight" in stored and stored["weight"][0].dtype != SIGNED_BYTE


def _unpack_pairs(tensor: StoredTensor) -> StoredTensor:
    if tensor.dtype != SIGNED_BYTE:
        return tensor
    *leading, columns = tensor.shape
    return msgspec.structs.replace(tensor, dtype=FLOAT4_PAIRS, shape=[*leading, 2 * columns])


def _group_scales(source: ParameterSource, operations: list[Any]) -> Scaled:
    """Split off the scales of groups. Blocks [experts, rows, groups, bytes] hold rows of the transposed matrix."""
    blocks, scales = source.patterns
    stored = [_unpack_groups(tensor) for tensor in source.stored.get(blocks, [])]
    weights = ParameterSource([blocks], [Transpose(1, 2), *operations], {blocks: stored})
    return Scaled(weights, {blocks: source.stored.get(scales, [])})


def _unpack_groups(tensor: StoredTensor) -> StoredTensor:
    if len(tensor.shape) != 4:
        return tensor
    experts, rows, groups, count = tensor.shape
    return msgspec.structs.replace(tensor, dtype=FLOAT4_PAIRS, shape=[experts, rows, groups * count * 2])
