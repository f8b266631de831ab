"""Tensors of a GGUF file under the names of the model, each read and dequantised when it is loaded."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from ....errors import CheckpointError
from ...checkpoint.gguf.block_types import BLOCK_TYPES
from ...checkpoint.gguf.container import StoredBlocks
from ...checkpoint.gguf.dequantise import dequantise
from ...checkpoint.gguf.description import Description, StoredParameter, read_description
from ...checkpoint.gguf.model_files import read_containers

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


class LazyTensor:
    """One stored tensor, which `tensor[...]` reads: quantised ones as float32, with the changes that a family needs."""

    def __init__(self, path: Path, stored: StoredBlocks, processor: TensorProcessor) -> None:
        self._path, self._stored, self._processor = path, stored, processor
        self.shape = torch.Size(stored.shape)
        """May be set to another one of as many values, which the tensor then has."""

    def __getitem__(self, where: Any) -> torch.Tensor:
        return self._whole().reshape(self.shape)[where]

    def blocks(self) -> torch.Tensor:
        """Return the stored blocks, uint8 [bytes]. Raises CheckpointError if the file has become shorter."""
        return torch.from_numpy(self._read())

    def _whole(self) -> torch.Tensor:
        own = self._stored
        if own.type.name in BLOCK_TYPES:
            values = dequantise(self._read(), own.type.name).reshape(own.shape)
        else:
            values = torch.from_numpy(self._read()).view(_PLAIN[own.type.name]).reshape(own.shape)
            if values.dtype == torch.bfloat16:
                return values  # numpy has no such type, and no processor changes matrices
            values = values.numpy()
        changed = self._processor.process(weights=values, name=own.name).weights
        return torch.from_numpy(np.ascontiguousarray(changed))

    def _read(self) -> np.ndarray:
        """Return the stored bytes, uint8 [bytes]. Raises CheckpointError if the file has become shorter."""
        own, raw = self._stored, bytearray(self._stored.count_bytes)
        with self._path.open("rb", buffering=0) as file:
            file.seek(own.offset_bytes)
            done = 0
            while done < len(raw) and (count := file.readinto(memoryview(raw)[done:])):
                done += count
            os.posix_fadvise(file.fileno(), own.offset_bytes, own.count_bytes, os.POSIX_FADV_DONTNEED)
        if done < len(raw):
            raise CheckpointError(f"is cut off in tensor {own.name}", str(self._path), "Download the file again")
        return np.frombuffer(raw, dtype=np.uint8)


def stored_blocks(folder: Path, names: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and blocks, uint8 [bytes], of parameters of a GGUF model that are one stored tensor each.

    Raises CheckpointError for files that cannot be read.
    """
    described = read_description(folder)
    tensors = lazy_tensors(described, {}) if described and names else {}
    for name in names:
        yield name, tensors[name].blocks()


class LazyParameter:
    """A parameter of routed experts, made of stored tensors of all experts."""

    def __init__(self, parts: list[LazyTensor], stored: StoredParameter) -> None:
        self._parts, self._stored = parts, stored

    @property
    def shape(self) -> torch.Size:
        experts, rows, *columns = self._parts[0].shape
        whole = [rows * len(self._parts), *columns]
        return torch.Size((experts, *(reversed(whole) if self._stored.transposed else whole)))

    def __getitem__(self, where: Any) -> torch.Tensor:
        parts = [part[...] for part in self._parts]
        whole = torch.stack(parts, dim=2).flatten(1, 2) if self._stored.alternating else torch.cat(parts, dim=1)
        return (whole.transpose(1, 2).contiguous() if self._stored.transposed else whole)[where]


def lazy_tensors(described: Description, config: dict[str, Any], with_experts: bool = False) -> dict[str, Any]:
    """Return the parameters of the model by name; those of routed experts only `with_experts`.

    `config`: the model's configuration, which transformers' tensor processors look into. Raises CheckpointError for
    files that cannot be read.
    """
    processor = TENSOR_PROCESSORS.get(described.architecture, TensorProcessor)(config=config)
    paths = [Path(file) for file in described.files]
    stored = {
        tensor.name: LazyTensor(path, tensor, processor)
        for path, container in zip(paths, read_containers(paths), strict=True)
        for tensor in container.tensors
    }
    found: dict[str, Any] = {}
    for name, own in described.parameters.items():
        if name not in described.experts:
            found[name] = stored[own.tensors[0]]
            found[name].shape = torch.Size(own.shape)
        elif with_experts:
            found[name] = LazyParameter([stored[part] for part in own.tensors], own)
    return found
