"""The files that hold a model's weights and the tensors in them: safetensors, or GGUF that a folder describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .gguf.block_types import PLAIN
from .gguf.container import StoredBlocks
from .gguf.description import read_description
from .gguf.model_files import read_containers
from .headers import StoredTensor, checkpoint_files, read_headers, weights_entry


def weight_files(folder: Path, config: dict[str, Any] | None = None) -> list[Path]:
    """Return the files with the weights of a folder. Raises CheckpointError when one is missing.

    `config`: the folder's config.json where it was read already.
    """
    described = read_description(folder)
    return [Path(file) for file in described.files] if described else checkpoint_files(folder, config)


def has_weights_here(folder: Path) -> bool:
    """Return whether a local folder has weights, or describes a file with them."""
    return read_description(folder) is not None or (folder / weights_entry(folder)).is_file()


def stored_bytes_here(folder: Path) -> int:
    """Return the bytes of all weights that a local folder has or describes, by the sizes of its files."""
    described = read_description(folder)
    files = [Path(file) for file in described.files] if described else folder.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def read_stored(folder: Path, files: list[Path]) -> dict[str, StoredTensor]:
    """Return all tensors of all files by name, those of GGUF with its types. Raises CheckpointError for broken files.

    `files` are those of `weight_files(folder)`.
    """
    if read_description(folder) is None:
        return read_headers(files)
    return {
        own.name: _as_stored(number, own)
        for number, container in enumerate(read_containers(files))
        for own in container.tensors
    }


def _as_stored(number: int, own: StoredBlocks) -> StoredTensor:
    dtype = PLAIN.get(own.type.name, own.type.name)
    return StoredTensor(own.name, number, dtype, own.shape, own.offset_bytes, own.count_bytes)
