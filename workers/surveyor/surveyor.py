"""Surveys a checkpoint by its headers and configuration alone. Imports torch: runs in compute, or for `plan` alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ...errors import CheckpointError, ExpertFlowError
from ..checkpoint.config_file import read_config
from ..checkpoint.generation import Generation, read_generation
from ..checkpoint.gguf.description import read_description
from ..checkpoint.headers import first_dtype, ignored_weights
from ..checkpoint.partial_models import refuse_adapter_tensors
from ..checkpoint.refused_weights import refuse_packed, refuse_packed_index
from ..checkpoint.resolve import resolve_folder
from ..checkpoint.stamps import stamp_files
from ..checkpoint.stored_weights import read_stored, weight_files
from ..checkpoint.survey import Survey
from ..kernels.making import ModelParts
from ..kernels.table import KernelTable
from ..model.architecture import build_on_meta, expert_names, expert_parameters, load_config, resolve_dtype
from ..model.dry_run import dry_run
from ..model.dtypes import dtype_name, loaded_dtypes
from ..model.encoder_decoder import decoder_start
from ..packed.choice import DEQUANTISED, ExpertsIn, PackingChoice
from .completeness import check_complete
from .conversions import stack_separate_experts
from .expert_bytes import ExpertBytes
from .fingerprint import fingerprint
from .gguf_sources import find_sources
from .sizing import (
    encoder_layers,
    exact_positions,
    experts_per_token,
    linear_counts,
    notes_on,
    packable_bytes,
    routed_experts,
    row_facts,
    skeleton_bytes,
    unexpected_error,
)
from .sources import ParameterSource

MakeTable = Callable[[ModelParts, str], KernelTable]
"""Makes the kernel table of a model whose experts have this dtype."""


def kernels_by_rule(parts: ModelParts, dtype: str) -> KernelTable:
    """Return a table without measurements: where nothing is computed, or on a device."""
    return KernelTable()


def survey_checkpoint(
    model: str,
    revision: str = "",
    dtype: str = "auto",
    generation_settings: str = "honour",
    experts_in: ExpertsIn = "dequantised",
) -> Survey:
    """Return all that the other processes need to know of a checkpoint; a hub id is downloaded if it is not cached.

    Raises UsageError or CheckpointError: no such model, no routed experts, unsupported quantisation, a missing tensor
    or shard, a truncated or unreadable file; for a hub id also EngineError where the hub cannot be reached.
    """
    folder = resolve_folder(model, revision)
    return survey_folder(folder, dtype, generation_settings, choice=PackingChoice(experts_in))


def survey_folder(
    folder: Path,
    dtype: str = "auto",
    generation_settings: str = "honour",
    make_table: MakeTable = kernels_by_rule,
    choice: PackingChoice = DEQUANTISED,
) -> Survey:
    """Return the survey of a checkpoint in a folder. Raises UsageError or CheckpointError."""
    try:
        survey, parts = _survey(folder, dtype, generation_settings, choice)
    except OSError as error:
        where = str(error.filename or folder)
        what = f"cannot be read ({error.strerror or error})"
        raise CheckpointError(what, where, "Check its permissions and the disk") from error
    except ExpertFlowError:
        raise
    except Exception as error:  # noqa: BLE001 - the library meets values here that nobody has thought of
        raise unexpected_error(folder, error) from error
    survey = msgspec.structs.replace(survey, kernels=make_table(parts, survey.dtype))
    return msgspec.structs.replace(survey, packs_linears=bool(survey.packed_linears))


def _survey(folder: Path, dtype: str, settings: str, choice: PackingChoice) -> tuple[Survey, ModelParts]:
    stamps = stamp_files(file for file in [folder / "config.json"] if file.is_file())
    values = read_config(folder)
    config = load_config(folder, values)
    refuse_packed_index(values, folder)
    files = weight_files(folder, values)
    stamps |= stamp_files(files)
    stored = read_stored(folder, files)
    refuse_packed(stored, values, folder)
    wanted = resolve_dtype(config, dtype, first_dtype(stored))
    skeleton = build_on_meta(config, wanted)
    modules = routed_experts(skeleton, folder)
    sources = find_sources(folder, skeleton, stored)
    refuse_adapter_tensors(stored, skeleton.state_dict(), folder)
    check_complete(skeleton, sources, folder, stored)
    stack_separate_experts(modules, sources)
    dtypes = _checked_dtypes(skeleton, modules, wanted)
    experts = ExpertBytes(modules, sources, dtype_name(wanted), choice)
    vocabulary = config.get_text_config().vocab_size
    generation = read_generation(folder, vocabulary, settings, values)
    run = dry_run(config, wanted)
    top_k = experts_per_token(run, config)
    sizes = (len(modules), experts.count, top_k, vocabulary)
    survey = Survey(
        folder=str(folder),
        model_type=config.model_type,
        architecture=type(skeleton).__name__,
        dtype=dtype_name(wanted),
        vocabulary=vocabulary,
        context=exact_positions(config),
        **_generation_facts(generation, config),
        notices=[f"{folder}: {notice}" for notice in [ignored_weights(folder, values)] if notice],
        decoder_start=decoder_start(config) if config.is_encoder_decoder else None,
        layers=len(modules),
        encoder_layers=encoder_layers(config, modules),
        experts=experts.count,
        kinds=experts.kinds,
        top_k=top_k,
        module_names=list(modules),
        fingerprint=fingerprint(stored.values(), _expert_names(modules, sources), files, sizes),
        skeleton_bytes=skeleton_bytes(skeleton, modules, dtypes),
        stored_expert_bytes=experts.stored_bytes(),
        checkpoint_bytes=sum(file.stat().st_size for file in files),
        **_packable(folder, skeleton, wanted),
        rows=row_facts(config, run),
        linears=linear_counts(skeleton, dtypes),
        notes=notes_on(folder, values),
        files=[str(file) for file in files],
        stamps=stamps,
        tensors=experts.tensors,
        packings=experts.packings,
        pieces=experts.pieces,
        places=experts.places.tobytes(),
        variants=experts.variants,
        stride_bytes=experts.stride_bytes,
        block_bytes=experts.block_bytes,
    )
    module = next(iter(modules.values()))
    return survey, ModelParts(skeleton, module, survey.parameters, dtypes, survey.packings)


def _expert_names(modules: dict[str, Any], sources: dict[str, ParameterSource]) -> set[str]:
    """Return the names of the stored tensors that routed experts are made of."""
    owned = [sources[f"{layer}.{name}"] for layer, module in modules.items() for name in expert_parameters(module)]
    return {tensor.name for source in owned for tensor in source.tensors()}


def _checked_dtypes(skeleton: PreTrainedModel, modules: dict[str, Any], wanted: torch.dtype) -> dict[str, torch.dtype]:
    """Return the type of every tensor once loaded. Raises CheckpointError if experts have another than `wanted`."""
    dtypes = loaded_dtypes(skeleton, wanted)
    for layer, module in modules.items():
        for name in expert_names(layer, module):
            if (own := dtypes[name]) != wanted:
                what = f"is kept in {dtype_name(own)} by the library, not in {dtype_name(wanted)}"
                raise CheckpointError(what, name, "Choose dtype = float32")
    return dtypes


def _packable(folder: Path, skeleton: PreTrainedModel, wanted: torch.dtype) -> dict[str, Any]:
    """Return the fields of a survey on linear layers that may stay packed; only a GGUF model has some."""
    described = read_description(folder)
    linears = described.linears if described else {}
    return {"packable": linears, "packable_bytes": packable_bytes(skeleton, linears, wanted)}


def _generation_facts(generation: Generation, config: PreTrainedConfig) -> dict[str, Any]:
    """Return the fields of a survey on ends of text, a forced first token, and the settings for every request.

    With an encoder a forced first token is the request's (`first_token`).
    """
    settings, first = generation.settings, None
    if config.is_encoder_decoder:
        settings, first = msgspec.structs.replace(settings, forced_bos_token_id=None), generation.first_token
    return {"eos_ids": generation.eos_ids, "first_token": first, "settings": settings}
