"""From transformers' own loading rules to pieces: which file bytes become which bytes of which expert.

Names and operations come from `get_model_conversion_mapping`, never from a table kept here. Accepted for experts are
rename, stack, stack and concatenate, transpose, and separating rows that alternate, of weights as they are or with
scales (sources.py); any other operation is refused by name.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import msgspec
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    Interleave,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from ...errors import CheckpointError
from ..checkpoint.headers import StoredTensor
from ..checkpoint.quantisation_config import UNQUANTISED, block_of
from ..model.families.base import OutsideExperts
from ..model.library_quantizer import quantizer_of
from ..packed.coding import Coding, Facts, Input
from .sources import SCALE_SUFFIX, Alternate, ParameterSource, Scaled, coding_of, own_share, separate_scales

MISMATCH = "config.json and the weights do not belong together; download the checkpoint again"


def match_sources(model: PreTrainedModel, stored: dict[str, StoredTensor]) -> dict[str, ParameterSource]:
    """Return the source of every parameter of `model` (on the meta device) that the checkpoint has."""
    quantizer = quantizer_of(model.config)
    mapping = get_model_conversion_mapping(model, hf_quantizer=quantizer)
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    rules = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    wanted = model.state_dict()
    sources: dict[str, ParameterSource] = {}
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = key, None
        if name in wanted or (quantizer and name.removesuffix(SCALE_SUFFIX) in wanted):
            _add(sources, name, pattern, rules[pattern] if pattern else None, stored[key])
    if quantizer:
        _attach_scales(sources, getattr(quantizer.quantization_config, "weight_block_size", None))
    return sources


def _attach_scales(sources: dict[str, ParameterSource], stated_block: Any) -> None:
    """Attach scales that have a name of their own to the parameter that they belong to."""
    for name in [name for name in sources if name.endswith(SCALE_SUFFIX)]:
        scales, weights = sources.pop(name), sources.get(name.removesuffix(SCALE_SUFFIX))
        if weights is None:
            continue
        if _alternates(scales) != _alternates(weights):
            raise CheckpointError("scales are converted in another way than their weights", name, UNQUANTISED)
        weights.scales, weights.stated_block = scales, list(stated_block) if stated_block else None


def _alternates(source: ParameterSource) -> bool:
    return any(isinstance(operation, Interleave) for operation in source.operations)


def stack_separate_experts(modules: dict[str, Any], sources: dict[str, ParameterSource]) -> None:
    """Add a source for each parameter that the library keeps as one an expert and an adapter as [experts, ...]."""
    for layer, module in modules.items():
        separate = module.stored_separately() if isinstance(module, OutsideExperts) else {}
        for name, names in separate.items():
            tensors = [_first_stored(sources[f"{layer}.{own}"]) for own in names]
            sources[f"{layer}.{name}"] = ParameterSource([""], [MergeModulelist(dim=0)], {"": tensors})


def _first_stored(source: ParameterSource) -> StoredTensor:
    """Return its weights. Scales of such experts are not read, so quantised ones are refused for lack of them."""
    weights = separate_scales(source).weights
    return weights.stored[weights.patterns[0]][0]


def _add(
    sources: dict[str, ParameterSource],
    name: str,
    pattern: str | None,
    rule: WeightConverter | None,
    tensor: StoredTensor,
) -> None:
    if name not in sources:
        patterns, operations = (rule.source_patterns, rule.operations) if rule else ([""], [])
        sources[name] = ParameterSource(list(patterns), list(operations), defaultdict(list))
        # A rule that splits a tensor is found by its first target.
        first, *others = targets = rule.target_patterns if rule else [name]
        for number, other in enumerate(others, 1):
            own = msgspec.structs.replace(sources[name], share=(number, len(targets)))
            sources[name.replace(first, other)] = own
        sources[name].share = (0, len(targets))
    sources[name].stored[pattern or ""].append(tensor)


Rearranged = Literal["", "transpose", "deinterleave"]


class ExpertPart(msgspec.Struct, frozen=True):
    """One run of a parameter's expert slice: the same for all experts but for `at`, file and offset of each expert.

    `rearranged`: the change of its rows between file and slot. `scales`: factors of its values, a part of their own;
    `block`: rows and columns that each scale covers.
    """

    shape: list[int]
    dtype: str
    at: list[tuple[int, int]]
    rearranged: Rearranged = ""
    scales: ExpertPart | None = None
    block: list[int] = []
    coding: Coding | None = None
    """Stored tensors of a packed matrix, where these are more than codes and one grid of scales."""
    inputs_at: list[list[tuple[int, int]]] = []
    """File and offset of each input of `coding`, in its order, for each expert."""
    input: Input | None = None
    """The stored tensor that a part of a packed matrix is made of."""
    every: int = 1
    """Distance of its rows in the slot tensor (of columns, if transposed), where rows of several parts alternate."""
    first: int = 0
    """Row of the slot tensor that its first one is, where rows of several parts alternate."""


MakePart = Callable[[str, list[StoredTensor], list[int]], ExpertPart]


def expert_parts(name: str, source: ParameterSource, shape: list[int]) -> list[ExpertPart]:
    """Return the parts of one expert of parameter `name` ([experts, ...] = `shape`), in the order of its slice.

    Raises CheckpointError for another operation than rename, stack, concatenate, transpose and deinterleave, and for
    parts that are missing or do not fit `shape`.
    """
    scaled = separate_scales(own_share(source))
    source = scaled.weights
    stacked, rearranged, alternates = _read_operations(name, source)
    if scaled.coded:
        return coded_parts(name, scaled, shape, stacked, rearranged)
    make = _stacked_part if stacked else _sliced_part
    stored = [pattern for pattern in source.patterns if source.stored.get(pattern)]
    if not stored:
        raise CheckpointError("has scales, but no weights", name, "The checkpoint is incomplete; download it again")
    parts = [_scaled_part(name, scaled, pattern, make, shape) for pattern in stored]
    if _checks_shape(source) and [shape[0], *parts[0].shape] == shape:
        rearranged = ""
    every = len(parts) if alternates else 1
    parts = [
        msgspec.structs.replace(part, rearranged=rearranged, every=every, first=number if alternates else 0)
        for number, part in enumerate(parts)
    ]
    _check_shape(name, parts, shape)
    return parts


def coded_parts(name: str, scaled: Scaled, shape: list[int], stacked: bool, rearranged: Rearranged) -> list[ExpertPart]:
    """Return the parts of a parameter whose experts are packed matrices, one after the other (gate and up)."""
    if not stacked or rearranged == "deinterleave" or len(shape) != 3:
        raise CheckpointError("packed experts are stored together, which is not supported", name, UNQUANTISED)
    rows, columns = shape[:0:-1] if rearranged == "transpose" else shape[1:]
    own = [rows // len(scaled.coded), columns]
    parts = [_coded_part(name, scaled, stored, shape, own) for stored in scaled.coded.values()]
    parts = [msgspec.structs.replace(part, rearranged=rearranged) for part in parts]
    _check_shape(name, parts, shape)
    return parts


def _coded_part(
    name: str, scaled: Scaled, stored: dict[str, list[StoredTensor]], shape: list[int], own: list[int]
) -> ExpertPart:
    """Return the part of one projection; `stored`: tensors of all experts by the last part of their names."""
    tensors = {suffix: _stacked_part(name, held, shape) for suffix, held in stored.items() if held}
    coding = coding_of(name, scaled.stated, {own: Facts(one.dtype, one.shape) for own, one in tensors.items()}, own)
    if coding is None:
        plain = tensors.get("weight")
        if plain is None:
            raise CheckpointError("has scales, but no weights", name, "The checkpoint is incomplete; download it again")
        return plain
    at = [tensors[one.suffix].at for one in coding.inputs.values()]
    return ExpertPart(own, coding.packing.format, at[0], coding=coding, inputs_at=at)


def _scaled_part(name: str, scaled: Scaled, pattern: str, make: MakePart, shape: list[int]) -> ExpertPart:
    part = make(name, scaled.weights.stored[pattern], shape)
    own = scaled.scales.get(pattern)
    if not own:
        return part
    scales = make(f"scales of {name}", own, [shape[0], *own[0].shape[1:]])
    if len(scales.shape) != 2 and math.prod(scales.shape) != 1:
        raise CheckpointError(f"has scales of shape {scales.shape}, neither a grid nor one", name, UNQUANTISED)
    grid = scales.shape if len(scales.shape) == 2 else [1, 1]
    block = block_of(name, part.shape, grid, scaled.stated_block)
    return msgspec.structs.replace(part, scales=msgspec.structs.replace(scales, shape=grid), block=block)


def _read_operations(name: str, source: ParameterSource) -> tuple[bool, Rearranged, bool]:
    """Return whether experts are stored apart, the change of rows, and whether rows of several tensors alternate."""
    stacked, rearranged, alternates = False, "", any(isinstance(own, Alternate) for own in source.operations)
    single = len(source.patterns) == 1 or alternates
    for operation in source.operations:
        match operation:
            case MergeModulelist(dim=0) if not stacked:
                stacked = True
            case Concatenate(dim=1) if not rearranged and (stacked or _is_stacked(source)):
                pass
            case Transpose() if {operation.dim0 % 3, operation.dim1 % 3} == {1, 2} and single and not rearranged:
                rearranged = "transpose"
            case Alternate():
                pass
            case Interleave(dim=1, inverse=False) if single and not rearranged:
                rearranged = "deinterleave"
            case _:
                what = f"experts need the conversion '{type(operation).__name__}', which cannot be read in place"
                remedy = "Save the model once with a recent transformers, which stores experts plainly"
                raise CheckpointError(what, name, remedy)
    return stacked, rearranged, alternates


def _is_stacked(source: ParameterSource) -> bool:
    """Return whether each part is one tensor of all experts: then rows of each expert are concatenated."""
    return all(len(source.stored.get(pattern, [])) == 1 for pattern in source.patterns)


def _checks_shape(source: ParameterSource) -> bool:
    return any(getattr(operation, "check_dims", False) for operation in source.operations)


def _stacked_part(name: str, tensors: list[StoredTensor], shape: list[int]) -> ExpertPart:
    experts = shape[0]
    if len(tensors) < experts:
        what = f"has {len(tensors)} of {experts} experts: {_first_absent(tensors)} is missing"
        raise CheckpointError(what, name, "The checkpoint is incomplete; download it again")
    if len(tensors) > experts:
        what = f"is stored for {len(tensors)} experts, the configuration asks for {experts}"
        raise CheckpointError(what, name, MISMATCH)
    first = tensors[0]
    odd = next((tensor for tensor in tensors if (tensor.shape, tensor.dtype) != (first.shape, first.dtype)), None)
    if odd is not None:
        what = f"experts differ in shape or type: {odd.name} is {odd.dtype} {odd.shape}, {first.name} is {first.dtype} "
        remedy = "Save the model once in one dtype: from_pretrained(FOLDER, dtype=...).save_pretrained(OTHER)"
        raise CheckpointError(f"{what}{first.shape}", name, remedy)
    return ExpertPart(first.shape, first.dtype, [(tensor.file, tensor.offset_bytes) for tensor in tensors])


def _first_absent(tensors: list[StoredTensor]) -> str:
    """Return the name that is missing in a series of names which differ in one number."""
    names = [re.split(r"(\d+)", tensor.name) for tensor in tensors]
    varying = [index for index in range(1, len(names[0]), 2) if len({name[index] for name in names}) > 1]
    if len(varying) != 1:
        return "one"
    present = {int(name[varying[0]]) for name in names}
    absent = str(next(number for number in range(len(present) + 1) if number not in present))
    return "".join([*names[0][: varying[0]], absent, *names[0][varying[0] + 1 :]])


def _sliced_part(name: str, tensors: list[StoredTensor], shape: list[int]) -> ExpertPart:
    tensor, experts = tensors[0], shape[0]
    as_rows = [experts * shape[1], *shape[2:]]
    own = shape[1:] if tensor.shape == as_rows else tensor.shape[1:]
    if tensor.shape[:1] != [experts] and tensor.shape != as_rows:
        what = f"is stored with shape {tensor.shape}, the configuration asks for {experts} experts"
        raise CheckpointError(what, name, MISMATCH)
    expert_bytes = tensor.count_bytes // experts
    places = [(tensor.file, tensor.offset_bytes + expert * expert_bytes) for expert in range(experts)]
    return ExpertPart(own, tensor.dtype, places)


def _check_shape(name: str, parts: list[ExpertPart], shape: list[int]) -> None:
    if any(part.rearranged == "deinterleave" and part.shape[0] % 2 for part in parts):
        raise CheckpointError("rows alternate, but their number is odd", name, MISMATCH)
    shapes = [part.shape[::-1] if part.rearranged == "transpose" else part.shape for part in parts]
    joined = -1 if parts[0].every > 1 and parts[0].rearranged == "transpose" else 0
    total = list(shapes[0])
    total[joined] = sum(own[joined] for own in shapes)
    if total != shape[1:] or any(len(part.at) != shape[0] for part in parts):
        what = f"stored experts have shape {total}, the configuration asks for {shape[1:]}"
        raise CheckpointError(what, name, MISMATCH)
