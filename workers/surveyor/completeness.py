"""Checks that a checkpoint has every tensor of its model, in the right shape, with the scales it needs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from ...errors import CheckpointError
from ..checkpoint.headers import DTYPE_BYTES
from ..checkpoint.partial_models import missing_error
from ..checkpoint.quantisation_config import UNQUANTISED, block_of
from .conversions import MISMATCH
from .sources import ParameterSource, separate_scales

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
    pattern = scaled.weights.patterns[0]
    tensor, *_ = scaled.weights.stored[pattern] or [None]
    if tensor is None:
        raise CheckpointError("has scales, but no weights", name, _INCOMPLETE)
    if tensor.shape != shape:
        what = f"is stored with shape {tensor.shape}, the configuration asks for {shape}"
        raise CheckpointError(what, name, MISMATCH)
    scales = scaled.scales.get(pattern, [])
    if not scales and wanted.is_floating_point() and tensor.dtype not in DTYPE_BYTES:
        raise CheckpointError(f"is stored as {tensor.dtype} without scales", name, UNQUANTISED)
    if scales and len(scales[0].shape) == 2:
        block_of(name, shape, scales[0].shape, scaled.stated_block)
