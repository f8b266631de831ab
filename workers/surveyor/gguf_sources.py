"""Sources of the parameters of a GGUF model, by the description of its files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import Concatenate, Transpose

from ...errors import CheckpointError
from ..checkpoint.gguf.description import Description, StoredParameter, read_description
from ..checkpoint.headers import StoredTensor
from .conversions import match_sources
from .sources import Alternate, ParameterSource


def find_sources(folder: Path, model: PreTrainedModel, stored: dict[str, StoredTensor]) -> dict[str, ParameterSource]:
    """Return the source of every parameter of `model` (on the meta device) that the files of a folder have.

    Raises CheckpointError for a description that does not fit the files.
    """
    described = read_description(folder)
    return match_sources(model, stored) if described is None else _described_sources(described, model, stored)


def _described_sources(
    described: Description, model: PreTrainedModel, stored: dict[str, StoredTensor]
) -> dict[str, ParameterSource]:
    wanted, sources = model.state_dict(), {}
    for name, own in described.parameters.items():
        if absent := next((part for part in own.tensors if part not in stored), None):
            what = f"has no tensor {absent}, which it had when it was described"
            raise CheckpointError(what, described.files[0], "Leave the file alone, and start again")
        if name in wanted:
            sources[name] = _source([stored[part] for part in own.tensors], own, wanted[name])
    return sources


def _source(tensors: list[StoredTensor], own: StoredParameter, wanted: Tensor) -> ParameterSource:
    operations: list[Any] = [Transpose(1, 2)] if own.transposed else []
    if len(tensors) > 1:
        joined = [*operations, Alternate() if own.alternating else Concatenate(dim=1)]
        return ParameterSource([part.name for part in tensors], joined, {part.name: [part] for part in tensors})
    shape = list(wanted.shape)
    fits = math.prod(tensors[0].shape) == math.prod(shape)  # axes of one value are left out in files
    plain = msgspec.structs.replace(tensors[0], shape=shape) if fits and not own.transposed else tensors[0]
    return ParameterSource([""], operations, {"": [plain]})
