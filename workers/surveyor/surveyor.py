"""Surveys a checkpoint by its headers and configuration alone. Imports torch: runs in compute, or for `plan` alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ...errors import CheckpointError, ExpertFlowError
from ...ipc.messages import GenerationSettings
from ..checkpoint.config_file import read_config
from ..checkpoint.generation import Generation, read_generation
from ..checkpoint.headers import checkpoint_files, first_dtype, ignored_weights, read_headers
from ..checkpoint.partial_models import refuse_adapter_tensors
from ..checkpoint.refused_weights import refuse_gguf, refuse_packed, refuse_packed_index
from ..checkpoint.resolve import resolve_folder
from ..checkpoint.stamps import stamp_files
from ..checkpoint.survey import Piece, SlotTensor, Survey
from ..kernels.making import ModelParts
from ..kernels.table import KernelTable
from ..model.architecture import build_on_meta, expert_names, expert_parameters, load_config, resolve_dtype
from ..model.dry_run import dry_run
from ..model.dtypes import dtype_name, loaded_dtypes
from ..model.encoder_decoder import decoder_start
from .completeness import check_complete
from .conversions import ExpertPart, expert_parts, match_sources, stack_separate_experts
from .fingerprint import fingerprint
from .pieces import make_piece, number_variants, part_places
from .sizing import (
    encoder_layers,
    exact_positions,
    expert_count,
    expert_kinds,
    expert_shapes,
    experts_per_token,
    notes_on,
    routed_experts,
    row_facts,
    skeleton_bytes,
    slot_layout,
    unexpected_error,
)
from .sources import ParameterSource

MakeTable = Callable[[ModelParts, str], KernelTable]
"""Makes the kernel table of a model whose experts have this dtype."""


def kernels_by_rule(parts: ModelParts, dtype: str) -> KernelTable:
    """Return a table without measurements: where nothing is computed, or on a device."""
    return KernelTable()


def survey_checkpoint(
    model: str, revision: str = "", dtype: str = "auto", generation_settings: str = "honour"
) -> Survey:
    """Return all that the other processes need to know of a checkpoint; a hub id is downloaded if it is not cached.

    Raises UsageError or CheckpointError: no such model, no routed experts, unsupported quantisation, a missing tensor
    or shard, a truncated or unreadable file; for a hub id also EngineError where the hub cannot be reached.
    """
    return survey_folder(resolve_folder(model, revision), dtype, generation_settings)


def survey_folder(
    folder: Path, dtype: str = "auto", generation_settings: str = "honour", make_table: MakeTable = kernels_by_rule
) -> Survey:
    """Return the survey of a checkpoint in a folder. Raises UsageError or CheckpointError."""
    survey, parts = _survey_or_refuse(folder, dtype, generation_settings)
    return msgspec.structs.replace(survey, kernels=make_table(parts, survey.dtype))


def _survey_or_refuse(folder: Path, dtype: str, generation_settings: str) -> tuple[Survey, ModelParts]:
    try:
        return _survey(folder, dtype, generation_settings)
    except OSError as error:
        where = str(error.filename or folder)
        what = f"cannot be read ({error.strerror or error})"
        raise CheckpointError(what, where, "Check its permissions and the disk") from error
    except ExpertFlowError:
        raise
    except Exception as error:  # noqa: BLE001 - the library meets values here that nobody has thought of
        raise unexpected_error(folder, error) from error


def _survey(folder: Path, dtype: str, generation_settings: str) -> tuple[Survey, ModelParts]:
    stamps = stamp_files(file for file in [folder / "config.json"] if file.is_file())
    values = read_config(folder)
    config = load_config(folder, values)
    refuse_gguf(folder)
    refuse_packed_index(values, folder)
    files = checkpoint_files(folder, values)
    stamps |= stamp_files(files)
    stored = read_headers(files)
    refuse_packed(stored, values, folder)
    wanted = resolve_dtype(config, dtype, first_dtype(stored))
    skeleton = build_on_meta(config, wanted)
    modules = routed_experts(skeleton, folder)
    sources = match_sources(skeleton, stored)
    refuse_adapter_tensors(stored, skeleton.state_dict(), folder)
    check_complete(skeleton, sources, folder, stored)
    stack_separate_experts(modules, sources)
    dtypes = loaded_dtypes(skeleton, wanted)
    _check_expert_dtypes(modules, dtypes, wanted)
    experts = _ExpertBytes(modules, sources, dtype_name(wanted))
    text = config.get_text_config()
    generation = read_generation(folder, text.vocab_size, generation_settings, values)
    run = dry_run(config, wanted)
    top_k = experts_per_token(run, config)
    sizes = (len(modules), experts.count, top_k, text.vocab_size)
    survey = Survey(
        folder=str(folder),
        model_type=config.model_type,
        architecture=type(skeleton).__name__,
        dtype=dtype_name(wanted),
        vocabulary=text.vocab_size,
        context=exact_positions(config),
        eos_ids=generation.eos_ids,
        first_token=generation.first_token if config.is_encoder_decoder else None,
        settings=_settings(generation, config),
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
        rows=row_facts(config, run),
        notes=notes_on(folder, values),
        files=[str(file) for file in files],
        stamps=stamps,
        tensors=experts.tensors,
        pieces=experts.pieces,
        places=experts.places.tobytes(),
        variants=experts.variants,
        stride_bytes=experts.stride_bytes,
        block_bytes=experts.block_bytes,
    )
    return survey, _model_parts(skeleton, modules, experts.tensors, dtypes)


def _model_parts(
    skeleton: PreTrainedModel, modules: dict[str, Any], tensors: list[SlotTensor], dtypes: dict[str, torch.dtype]
) -> ModelParts:
    """Return what kernels compute; all layers have experts of one shape."""
    module = next(iter(modules.values()))
    return ModelParts(skeleton, module, {tensor.name: tensor.shape for tensor in tensors}, dtypes)


def _expert_names(modules: dict[str, Any], sources: dict[str, ParameterSource]) -> set[str]:
    """Return the names of the stored tensors that routed experts are made of."""
    owned = [sources[f"{layer}.{name}"] for layer, module in modules.items() for name in expert_parameters(module)]
    return {tensor.name for source in owned for tensor in source.tensors()}


def _check_expert_dtypes(modules: dict[str, Any], dtypes: dict[str, torch.dtype], wanted: torch.dtype) -> None:
    for layer, module in modules.items():
        for name in expert_names(layer, module):
            if (own := dtypes[name]) != wanted:
                what = f"is kept in {dtype_name(own)} by the library, not in {dtype_name(wanted)}"
                raise CheckpointError(what, name, "Choose dtype = float32")


class _ExpertBytes:
    """Slot layout and places of all experts; layers that are stored differently have pieces of their own."""

    def __init__(self, modules: dict[str, Any], sources: dict[str, ParameterSource], dtype: str) -> None:
        shapes = expert_shapes(modules)
        kinds = expert_kinds(modules)
        self.count, self.kinds = expert_count(shapes, kinds), len(kinds)
        self.tensors, self.stride_bytes, self.block_bytes = slot_layout(shapes, kinds, dtype)
        layers = [self._parts_of(layer, shapes, sources) for layer in modules]
        by_layer = [_pieces(layer, self.tensors) for layer in layers]
        distinct = [pieces for number, pieces in enumerate(by_layer) if pieces not in by_layer[:number]]
        self.variants = [distinct.index(pieces) for pieces in by_layer] if len(distinct) > 1 else []
        self.pieces, columns = number_variants(distinct)
        self.places = np.zeros((len(layers), 1 + max(map(max, columns)), self.count, 2), dtype=np.int64)
        for layer, parts in enumerate(layers):
            own = columns[self.variants[layer] if self.variants else 0]
            self.places[layer, own] = part_places(parts, self.tensors, self.kinds)
        self.places = np.ascontiguousarray(self.places.transpose(0, 2, 1, 3))

    def stored_bytes(self) -> int:
        """Return the bytes in the files of one expert of the largest kind, in the layers that store it largest."""
        sizes: dict[tuple[int, int], int] = {}
        for piece in self.pieces:
            key = piece.variant, self.tensors[piece.tensor].kind
            sizes[key] = sizes.get(key, 0) + piece.stored_bytes
        return max(sizes.values())

    def _parts_of(
        self, layer: str, shapes: dict[str, list[int]], sources: dict[str, ParameterSource]
    ) -> list[list[ExpertPart]]:
        names = [tensor.name for tensor in self.tensors]
        return [expert_parts(f"{layer}.{name}", sources[f"{layer}.{name}"], shapes[name]) for name in names]


def _pieces(parts: list[list[ExpertPart]], tensors: list[SlotTensor]) -> list[Piece]:
    pieces: list[Piece] = []
    scales_place = sum(map(len, parts))
    for number, (tensor, own) in enumerate(zip(tensors, parts, strict=True)):
        at = 0
        for part in own:
            pieces.append(make_piece(number, tensor, part, at, scales_place))
            at += pieces[-1].count_bytes
            scales_place += part.scales is not None
    return pieces


def _settings(generation: Generation, config: PreTrainedConfig) -> GenerationSettings:
    """Return the settings for every request; with an encoder a forced first token is the request's (`first_token`)."""
    if not config.is_encoder_decoder:
        return generation.settings
    return msgspec.structs.replace(generation.settings, forced_bos_token_id=None)
