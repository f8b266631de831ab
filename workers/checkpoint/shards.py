"""Writes a checkpoint in shards, one tensor at a time, so that a model larger than the memory can be written.

A shard gets its name when it is whole. So writing that was broken off goes on at the first shard without its name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ...configs.sizes import format_size
from ...errors import UsageError
from .headers import DTYPES, INDEX

ReportProgress = Callable[[str, int, int], None]
"""Called with (what, bytes done, bytes in all)."""

SHARD_BYTES = 256 * 1000**2
"""Largest size of a shard, unless what stays together is larger."""

DATA_ALIGNMENT_BYTES = 4096
"""Alignment of the data in a shard. Tensors of whole blocks at its beginning then lie as direct reads want them."""

_COPIED_SUFFIXES = {".json", ".txt", ".model", ".jinja"}
_PREDICTOR = "predictor.npz"
"""Copied: a widened model routes the same and a quantised one nearly so, and a trained predictor holds for both."""
_STORED_NAMES = {name: stored for stored, name in DTYPES.items()}


@dataclass(frozen=True)
class OutputTensor:
    """One tensor to be written. `make` returns its bytes; it is called once, when their turn comes."""

    name: str
    dtype: str
    """By safetensors' name, or as in `DTYPES`."""
    shape: list[int]
    count_bytes: int
    make: Callable[[], bytes | bytearray | memoryview]
    together: Hashable = None
    """Tensors in a row that have the same are written to one shard; None: it stands alone."""


def write_shards(folder: Path, tensors: Sequence[OutputTensor], what: str, progress: ReportProgress) -> None:
    """Write `tensors` and their index into `folder`, except shards that are there already. Raises OSError."""
    shards = _shards(tensors)
    total_bytes = sum(tensor.count_bytes for tensor in tensors)
    weight_map: dict[str, str] = {}
    done_bytes = 0
    for number, shard in enumerate(shards, start=1):
        path = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= {tensor.name: path.name for tensor in shard}
        for written_bytes in _write_shard(path, shard):
            done_bytes += written_bytes
            progress(what, done_bytes, total_bytes)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def check_destination(source: Path, destination: Path, count_bytes: int) -> None:
    """Raise UsageError if `source` is no model folder, or if so many bytes cannot be written to `destination`."""
    if not (source / "config.json").is_file():
        raise UsageError("there is no config.json", str(source), "Name a model folder")
    if destination.exists() or destination.is_symlink():
        raise UsageError("the destination exists", str(destination), "Remove it or name another folder")
    if not destination.parent.is_dir():
        raise UsageError("the folder to write into does not exist", str(destination.parent), "Create it first")
    free_bytes = shutil.disk_usage(destination.parent).free
    if count_bytes > free_bytes:
        what = f"the copy takes {format_size(count_bytes)}, but only {format_size(free_bytes)} are free"
        raise UsageError(what, str(destination.parent), "Make it smaller, or choose another disk")


@contextmanager
def name_failures(folder: Path) -> Iterator[None]:
    """Turn what the system says against a read or a write in here into UsageError; `folder` where it names no file."""
    try:
        yield
    except OSError as error:
        what = f"cannot be read or written: {error.strerror or error}"
        remedy = "Correct that, then give the same command again"
        raise UsageError(what, str(error.filename or folder), remedy) from error


def copy_other_files(source: Path, folder: Path) -> None:
    """Copy what a model folder has besides weights and config.json: tokenizer, settings, its predictor."""
    for file in sorted(source.iterdir()):
        copied = file.is_file() and (file.suffix in _COPIED_SUFFIXES or file.name == _PREDICTOR)
        if copied and file.name != "config.json" and not file.name.endswith(".safetensors.index.json"):
            shutil.copyfile(file, folder / file.name)


def _shards(tensors: Sequence[OutputTensor]) -> list[list[OutputTensor]]:
    shards: list[list[OutputTensor]] = [[]]
    shard_bytes = 0
    for _, group in groupby(tensors, key=lambda one: one.name if one.together is None else one.together):
        own = list(group)
        own_bytes = sum(tensor.count_bytes for tensor in own)
        if shards[-1] and shard_bytes + own_bytes > SHARD_BYTES:
            shards.append([])
            shard_bytes = 0
        shards[-1] += own
        shard_bytes += own_bytes
    return shards


def _write_shard(path: Path, shard: list[OutputTensor]) -> Iterator[int]:
    """Write header and tensors, unless the shard is there; yields the bytes of each tensor as it is written."""
    if path.exists():
        yield sum(tensor.count_bytes for tensor in shard)
        return
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as target:
        target.write(_header(shard))
        for tensor in shard:
            yield target.write(tensor.make())
        target.flush()
        os.fsync(target.fileno())
    unfinished.rename(path)


def _header(shard: list[OutputTensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in shard:
        end = begin + tensor.count_bytes
        dtype = _STORED_NAMES.get(tensor.dtype, tensor.dtype)
        entries[tensor.name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text
