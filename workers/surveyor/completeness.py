"""Checks that a checkpoint has every tensor of its model, in the right shape, with the scales it needs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from ...errors import CheckpointError
from ..checkpoint.gguf.block_types import BLOCK_TYPES
from ..checkpoint.headers import DTYPE_BYTES
from ..checkpoint.partial_models import missing_error
from ..checkpoint.quantisation_config import UNQUANTISED, block_of
from ..packed.coding import Facts
from .conversions import MISMATCH
from .sources import ParameterSource, Scaled, coding_of, separate_scales

_INCOMPLETE = "The checkpoint is incomplete; download it again"


def check_complete(
    model: PreTrainedModel, sources: dict[str, ParameterSource], folder: Path, stored: Iterable[str]
) -> None:
    """Raise CheckpointError for the first tensor of `model` (on the meta device) that is missing or does not fit.

    `stored`: the names of all tensors in the files, which may show how the model was saved wrongly.
    """
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    optional = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or []]
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name in sources:
            _check_plain_tensor(name, sources[name], tensor)
        elif name not in tied and not any(pattern.search(name) for pattern in optional):
            raise missing_error(name, list(stored), list(wanted), model.config, folder)


def _check_plain_tensor(name: str, source: ParameterSource, wanted: Tensor) -> None:
    """Check a tensor that is stored unconverted, but for scales.

    Experts are checked by their parts. The library checks other tensors that it converts.
    """
    scaled, shape = separate_scales(source), list(wanted.shape)
    if scaled.weights.operations:
        return
    if scaled.coded:
        _check_coded(name, scaled, shape)
        return
    pattern = scaled.weights.patterns[0]
    tensor, *_ = scaled.weights.stored[pattern] or [None]
    if tensor is None:
        raise CheckpointError("has scales, but no weights", name, _INCOMPLETE)
    if tensor.shape != shape:
        what = f"is stored with shape {tensor.shape}, the configuration asks for {shape}"
        raise CheckpointError(what, name, MISMATCH)
    scales = scaled.scales.get(pattern, [])
    plain = tensor.dtype in DTYPE_BYTES or tensor.dtype in BLOCK_TYPES
    if not scales and wanted.is_floating_point() and not plain:
        raise CheckpointError(f"is stored as {tensor.dtype} without scales", name, UNQUANTISED)
    if scales and len(scales[0].shape) == 2:
        block_of(name, shape, scales[0].shape, scaled.stated_block)


def _check_coded(name: str, scaled: Scaled, shape: list[int]) -> None:
    """Check that the tensors of a packed matrix are what its format asks for."""
    stored = next(iter(scaled.coded.values()))
    facts = {suffix: Facts(tensors[0].dtype, tensors[0].shape) for suffix, tensors in stored.items()}
    if coding_of(name, scaled.stated, facts, shape) is None:
        raise CheckpointError("is quantised, but has no codes", name, _INCOMPLETE)
