"""Sizes of a model by its configuration alone: transformers builds it on the meta device, and its bytes are counted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ...errors import CheckpointError, ExpertFlowError
from ..checkpoint.config_file import read_config
from ..checkpoint.config_values import usable_values
from ..checkpoint.faulty_setting import describe_faulty_setting
from ..checkpoint.headers import DTYPE_BYTES
from ..checkpoint.layout import block_for, place_kinds
from ..checkpoint.partial_models import has_no_vision
from ..checkpoint.quantisation_config import quantisation_of
from ..checkpoint.survey import LinearCount, ModelSizes, RowFacts, SlotTensor
from ..kernels.shapes import count_linears
from ..model.architecture import (
    build_on_meta,
    expert_names,
    expert_parameters,
    experts_modules,
    load_config,
    resolve_dtype,
)
from ..model.configuration import default_values, first_line, renaming_note, run_as
from ..model.dry_run import DryRun, dry_run
from ..model.dtypes import dtype_name, loaded_dtypes
from ..model.families.base import ENCODER, OutsideExperts, stack_of
from ..model.families.refusals import NOT_DISPATCHED
from ..model.kv_cost import cost_of
from ..model.probing.probe import probe
from ..model.rope import rope_limits
from ..packed.choice import DEQUANTISED, PackingChoice
from ..packed.packing import GGUF_BLOCKS
from .stated_packings import pack_sizes, stated_bytes

ASSUMED_DTYPE = "bfloat16"
"""The type where neither the configuration nor a file names one: large models are published in it."""

MXFP4_GROUP = 32
"""Values that share a scale of one byte (OCP Microscaling Formats, MXFP4); two values a byte."""
FP8_BLOCK = [128, 128]
FP8_SCALE_BYTES = 4
MXFP8_BLOCK = [1, 32]
MXFP8_SCALE_BYTES = 1
"""An exponent for each group of a row (OCP Microscaling Formats, MXFP8); a value a byte."""


def model_sizes(
    folder: Path, dtype: str = "auto", values: dict[str, Any] | None = None, choice: PackingChoice = DEQUANTISED
) -> ModelSizes:
    """Return the sizes of the model whose config.json lies in `folder`; no weights are needed.

    `values`: what config.json holds, where it was read already. Raises CheckpointError for a model without routed
    experts, or one that transformers cannot build.
    """
    try:
        return _sizes(folder, dtype, read_config(folder) if values is None else values, choice)
    except (ExpertFlowError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - the library meets values here that nobody has thought of
        raise unexpected_error(folder, error) from error


def _sizes(folder: Path, dtype: str, values: dict[str, Any], choice: PackingChoice) -> ModelSizes:
    config = load_config(folder, values)
    wanted = resolve_dtype(config, dtype, ASSUMED_DTYPE)
    model = build_on_meta(config, wanted)
    modules = routed_experts(model, folder)
    shapes = expert_shapes(modules)
    kinds = expert_kinds(modules)
    tensors, stride_bytes, block_bytes = slot_layout(shapes, kinds, dtype_name(wanted))
    quantised = quantisation_of(values) or {}
    run = dry_run(config, wanted)
    sizes = ModelSizes(
        folder=str(folder),
        model_type=config.model_type,
        architecture=type(model).__name__,
        dtype=dtype_name(wanted),
        context=exact_positions(config),
        vocabulary=config.get_text_config().vocab_size,
        layers=len(modules),
        experts=expert_count(shapes, kinds),
        kinds=len(kinds),
        encoder_layers=encoder_layers(config, modules),
        top_k=experts_per_token(run, config),
        skeleton_bytes=skeleton_bytes(model, modules, loaded_dtypes(model, wanted)),
        rows=row_facts(config, run),
        linears=linear_counts(model, loaded_dtypes(model, wanted)),
        notes=notes_on(folder, values),
        tensors=tensors,
        stride_bytes=stride_bytes,
        block_bytes=block_bytes,
        stored_expert_bytes=max(
            stored_bytes(quantised, [tensor for tensor in tensors if tensor.kind == kind]) for kind in range(len(kinds))
        ),
    )
    small = pack_sizes(sizes, quantised)
    return small if choice.packs(small.packings, sizes.dtype) else sizes


def linear_counts(model: PreTrainedModel, dtypes: dict[str, torch.dtype]) -> list[LinearCount]:
    """Return the linear layers of a model by shape; `dtypes`: of each parameter, once it is loaded."""
    return [LinearCount(shape, count) for shape, count in count_linears(model, dtypes).items()]


def notes_on(folder: Path, values: dict[str, Any]) -> list[str]:
    """Return remarks for the user on the configuration in `folder`, whose config.json holds `values`."""
    text_only = ""
    if values.get("vision_config") and has_no_vision(folder, values):
        text_only = "Its folder has no weights of a vision part: its language model runs alone"
    return [note for note in (renaming_note(values), text_only) if note]


def unexpected_error(folder: Path, error: Exception) -> CheckpointError:
    """Return the typed error for any other one that config.json provokes; it names the oddest value there."""
    values = usable_values(read_config(folder), "config.json")
    defaults = default_values(CONFIG_MAPPING[run_as(values)])
    fault = describe_faulty_setting(values, defaults, lambda other: False)
    what = f"cannot be surveyed ({type(error).__name__}: {first_line(error)}){fault}"
    return CheckpointError(what, str(folder / "config.json"), "Correct it: compare it with the original model's")


def routed_experts(model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """Return the experts module of every MoE layer by path; raises CheckpointError if there is none."""
    modules = dict(experts_modules(model))
    if not modules:
        model_type = model.config.model_type
        if reason := NOT_DISPATCHED.get(model_type):
            raise CheckpointError(f"'{model_type}' is not supported: {reason}", str(folder), "Use transformers itself")
        what = f"'{model_type}' has no routed experts that transformers dispatches"
        raise CheckpointError(what, str(folder), "ExpertFlow runs Mixture-of-Experts models; use a plain runtime")
    return modules


def expert_shapes(modules: dict[str, Any]) -> dict[str, list[int]]:
    """Return the shape [experts, ...] of every parameter of the experts.

    Raises CheckpointError if shapes differ between layers, or if experts are empty.
    """
    shapes = {name: _shapes(module) for name, module in modules.items()}
    first = next(iter(shapes.values()))
    for name, own in shapes.items():
        if own != first:
            raise CheckpointError("experts differ between layers", name, "Such models are not supported")
    if any(0 in shape for shape in first.values()):
        raise CheckpointError(f"experts have no values ({first})", next(iter(shapes)), "Download the checkpoint again")
    return first


def _shapes(module: Any) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in expert_parameters(module).items()}


def expert_kinds(modules: dict[str, Any]) -> list[list[str]]:
    """Return the names of the parameters that experts of each kind have; almost always one kind."""
    module = next(iter(modules.values()))
    return module.expert_kinds() if isinstance(module, OutsideExperts) else [list(expert_parameters(module))]


def expert_count(shapes: dict[str, list[int]], kinds: list[list[str]]) -> int:
    """Return the number of experts of one layer, all kinds."""
    return sum(shapes[names[0]][0] for names in kinds)


def slot_layout(shapes: dict[str, list[int]], kinds: list[list[str]], dtype: str) -> tuple[list[SlotTensor], int, int]:
    """Return the tensors of a slot, kind after kind, its stride and the block of direct reads, in bytes."""
    slices = [{name: shapes[name][1:] for name in names} for names in kinds]
    largest = max(sum(math.prod(shape) for shape in own.values()) for own in slices)
    block_bytes = block_for(largest * DTYPE_BYTES[dtype])
    return *place_kinds(slices, dtype, block_bytes), block_bytes


def exact_positions(config: PreTrainedConfig) -> int:
    """Return the number of positions up to which the model is exact, whatever else is in the batch."""
    stated = getattr(config.get_text_config(), "max_position_embeddings", 0) or 2**31
    if stated < 0:
        raise CheckpointError(f"max_position_embeddings is {stated}", "config.json", "Download the checkpoint again")
    return min(stated, rope_limits(config) or stated)


def row_facts(config: PreTrainedConfig, run: DryRun) -> RowFacts:
    """Return abilities and cost of rows: tried on a tiny model of the same class, counted on the real one."""
    abilities, cost = probe(config), cost_of(run)
    return RowFacts(
        padding=abilities.padding,
        moving=abilities.moving,
        reason=abilities.reason,
        extending=abilities.extending,
        copying=abilities.copying,
        kv_bytes_per_position=cost.per_position_bytes,
        kv_bytes_per_row=cost.per_row_bytes,
    )


def experts_per_token(run: DryRun, config: PreTrainedConfig) -> int:
    """Return the k of top-k, the largest where layers differ. Raises CheckpointError if no router chose experts."""
    if not any(run.top_ks):
        raise CheckpointError("its routers never choose experts", config.model_type, "Such models are not supported")
    return max(run.top_ks)


def skeleton_bytes(model: PreTrainedModel, modules: dict[str, Any], dtypes: dict[str, torch.dtype]) -> int:
    """Return the bytes of all but routed experts, as loaded: parameters and buffers, tied ones once."""
    routed = {name for layer, module in modules.items() for name in expert_names(layer, module)}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return sum(tensor.numel() * dtypes[name].itemsize for name, tensor in tensors if name not in routed)


def packable_bytes(model: PreTrainedModel, linears: dict[str, str], dtype: torch.dtype) -> int:
    """Return the bytes that weights, by their name and the type of their GGUF blocks, need less than in `dtype`."""
    counts = {name: model.get_parameter(name).numel() for name in linears}
    return sum(
        counts[name] * dtype.itemsize - counts[name] // values * size_bytes
        for name, (values, size_bytes) in ((name, GGUF_BLOCKS[kind]) for name, kind in linears.items())
    )


def encoder_layers(config: PreTrainedConfig, modules: dict[str, Any]) -> int:
    """Return the number of MoE layers of the encoder."""
    return sum(stack_of(name) == ENCODER for name in modules) if config.is_encoder_decoder else 0


def stored_bytes(quantised: dict[str, Any], tensors: list[SlotTensor]) -> int:
    """Return the bytes of an expert's `tensors` in the files; 0 if the configuration does not define them.

    `quantised` is the quantization_config of config.json, empty for weights that are not quantised. Vectors (biases)
    never are.
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
        case "compressed-tensors" | "gptq" | "awq":
            return stated_bytes(quantised, tensors)
    return 0


def _mxfp4_bytes(tensor: SlotTensor) -> int:
    values = math.prod(tensor.shape)
    return values // 2 + values // MXFP4_GROUP if len(tensor.shape) > 1 else tensor.count_bytes


def _fp8_bytes(tensor: SlotTensor, block: list[int], scale_bytes: int) -> int:
    if len(tensor.shape) == 1:
        return tensor.count_bytes
    scales = math.prod(math.ceil(extent / size) for extent, size in zip(tensor.shape, block, strict=True))
    return math.prod(tensor.shape) + scale_bytes * scales
