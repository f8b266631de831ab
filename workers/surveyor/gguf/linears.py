"""Linear layers of a GGUF model whose weight is one stored tensor as it is: compute can multiply with its blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from ...checkpoint.gguf.container import Container, StoredBlocks
from ...checkpoint.gguf.description import StoredParameter
from ...kernels.shapes import plain_linears
from ...packed.packing import GGUF_BLOCKS


def whole_linears(
    model: nn.Module, parameters: Mapping[str, StoredParameter], containers: list[Container], config: dict[str, Any]
) -> dict[str, str]:
    """Return name -> type of the blocks of the weights [out, in] of linear layers that are stored as they are.

    Left out are weights that the library's loader changes, such as rotary projections whose rows it reorders, and one
    that is tied to the embeddings.
    """
    stored = {tensor.name: tensor for container in containers for tensor in container.tensors}
    processor = TENSOR_PROCESSORS.get(containers[0].architecture, TensorProcessor)(config=config)
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set[str]()
    found: dict[str, str] = {}
    kept: dict[tuple[str, tuple[int, ...]], bool] = {}
    """Results by name without numbers, and shape: layers differ in their numbers alone."""
    for path, _ in plain_linears(model):
        own = parameters.get(name := f"{path}.weight")
        if own is not None and name not in tied and len(own.tensors) == 1 and not own.transposed:
            tensor = stored[own.tensors[0]]
            if tensor.type.name not in GGUF_BLOCKS or tensor.shape != own.shape:
                continue
            key = re.sub(r"\d+", "", tensor.name), tuple(tensor.shape)
            if key not in kept:
                kept[key] = _is_kept(tensor, processor)
            if kept[key]:
                found[name] = tensor.type.name
    return found


def _is_kept(tensor: StoredBlocks, processor: TensorProcessor) -> bool:
    """Return whether the loader keeps every value of a matrix where it is: tried with its row and column numbers."""
    return all(_keeps(np.arange(extent), axis, tensor, processor) for axis, extent in enumerate(tensor.shape))


def _keeps(numbers: np.ndarray, axis: int, tensor: StoredBlocks, processor: TensorProcessor) -> bool:
    """Return whether a matrix with these numbers along one axis, broadcast along the other, comes back as it was."""
    column = numbers.astype(np.float32).reshape(-1, 1)
    given = np.broadcast_to(column if axis == 0 else column.T, tensor.shape)
    changed = processor.process(weights=given, name=tensor.name).weights
    return changed.shape == given.shape and bool(np.array_equal(changed, given))
