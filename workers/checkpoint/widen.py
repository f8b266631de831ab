"""Widening: makes a small trained model into a big one that computes the same function.

Every expert neuron is repeated N times and the down projection divided by N, so the repeats add up to the
output of the one neuron. For N a power of two the division only moves exponents: nothing is rounded.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

from ...configs.sizes import format_size
from ...errors import UsageError
from .config_file import read_config
from .headers import DTYPES, StoredTensor, checkpoint_files, read_headers

ReportProgress = Callable[[str, int, int], None]

SHARD_BYTES = 256 * 1000**2
"""Largest size of a shard, unless one tensor is larger."""

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_STORED_NAMES = {name: stored for stored, name in DTYPES.items()}
_COPIED_SUFFIXES = {".json", ".txt", ".model", ".jinja"}
_PREDICTOR = "predictor.npz"
"""Copied: routing stays the same, so a trained predictor holds for the copy."""
_EXPERT = re.compile(r"\.experts\.\d+\.(?:(gate_proj|up_proj)|(down_proj))\.weight$")
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the source; its `widened_dim` is repeated (None: copied as it is)."""

    stored: StoredTensor
    file: Path
    widened_dim: int | None

    @property
    def name(self) -> str:
        return self.stored.name

    def widened_shape(self, factor: int) -> list[int]:
        return [size * factor if dim == self.widened_dim else size for dim, size in enumerate(self.stored.shape)]

    def widened_bytes(self, factor: int) -> int:
        return self.stored.count_bytes * (1 if self.widened_dim is None else factor)


def widen(source: Path, destination: Path, factor: int, progress: ReportProgress | None = None) -> None:
    """Write to `destination` a copy of the model folder `source` whose experts are `factor` times as wide.

    The copy gives the same logits (to rounding of the sums) and the same routing. One tensor is held at a time.
    `destination` appears only when complete; `progress` is called with (what, bytes done, bytes in all).
    Raises CheckpointError if the source is broken. Raises UsageError if the factor is not a power of two, `destination`
    exists or its disk is too small; also for experts that are not separate gate, up and down projections in bfloat16 or
    float32 (as in Qwen3-MoE, OLMoE).
    """
    _check_arguments(source, destination, factor)
    tensors = _read_plan(source)
    config = _widened_config(source, tensors, factor)
    _check_room(destination, sum(tensor.widened_bytes(factor) for tensor in tensors))
    fresh = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        _write_shards(fresh, tensors, factor, progress or _no_progress)
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        _copy_other_files(source, fresh)
        fresh.chmod(0o755)
        fresh.rename(destination)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _no_progress(what: str, done_bytes: int, total_bytes: int) -> None:
    """Ignore progress, for a caller that does not watch."""


def _check_arguments(source: Path, destination: Path, factor: int) -> None:
    if factor < 1 or factor & (factor - 1):
        raise UsageError(f"the factor {factor} is not a power of two", "factor", "Choose 2, 4, 8, … 64")
    if not (source / "config.json").is_file():
        raise UsageError("there is no config.json", str(source), "Name a model folder")
    if destination.exists():
        raise UsageError("the destination exists", str(destination), "Remove it or name another folder")
    if not destination.parent.is_dir():
        raise UsageError("the folder to write into does not exist", str(destination.parent), "Create it first")


def _check_room(destination: Path, count_bytes: int) -> None:
    free_bytes = shutil.disk_usage(destination.parent).free
    if count_bytes > free_bytes:
        what = f"the copy takes {format_size(count_bytes)}, but only {format_size(free_bytes)} are free"
        raise UsageError(what, str(destination.parent), "Choose a smaller factor, or another disk")


def _read_plan(source: Path) -> list[_Tensor]:
    files = checkpoint_files(source)
    stored = read_headers(files).values()
    tensors = [_Tensor(tensor, files[tensor.file], _widened_dim(tensor.name)) for tensor in stored]
    if all(tensor.widened_dim is None for tensor in tensors):
        raise _unsupported(source, "no tensor is named …experts.N.gate_proj.weight, up_proj or down_proj")
    for tensor in tensors:
        _check_tensor(tensor, source)
    return tensors


def _check_tensor(tensor: _Tensor, source: Path) -> None:
    stored = tensor.stored
    if tensor.widened_dim is None:
        # Shared experts are as wide as the configuration's one width says, so they could not stay as they are.
        if ".experts." in stored.name or ".shared_experts." in stored.name:
            raise _unsupported(source, f"it also has {stored.name}")
    elif stored.dtype not in _DTYPES or len(stored.shape) != 2:
        raise _unsupported(source, f"{stored.name} is {stored.dtype} {stored.shape}, not a bfloat16 or float32 matrix")


def _unsupported(source: Path, why: str) -> UsageError:
    return UsageError(
        f"these experts cannot be widened: {why}",
        str(source),
        "Use a model with a gate_proj, up_proj and down_proj for each expert, such as Qwen3-MoE or OLMoE",
    )


def _widened_dim(name: str) -> int | None:
    """Return the dimension that counts neurons: rows of gate and up, columns of down."""
    found = _EXPERT.search(name)
    return None if found is None else (0 if found[1] else 1)


def _widened_config(source: Path, tensors: list[_Tensor], factor: int) -> dict[str, Any]:
    config = read_config(source)
    widths = {tensor.stored.shape[tensor.widened_dim] for tensor in tensors if tensor.widened_dim is not None}
    key = "moe_intermediate_size" if "moe_intermediate_size" in config else "intermediate_size"
    if widths != {config.get(key)}:
        stated = f"config.json says {key} = {config.get(key)}"
        raise _unsupported(source, f"they have {sorted(widths)} neurons, but {stated}")
    config.pop("transformers_weights", None)  # the copy has one set of weights
    return config | {key: config[key] * factor}


def _write_shards(folder: Path, tensors: list[_Tensor], factor: int, progress: ReportProgress) -> None:
    shards = _shards(tensors, factor)
    total_bytes = sum(tensor.widened_bytes(factor) for tensor in tensors)
    weight_map: dict[str, str] = {}
    done_bytes = 0
    for number, shard in enumerate(shards, start=1):
        path = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= {tensor.name: path.name for tensor in shard}
        for written_bytes in _write_shard(path, shard, factor):
            done_bytes += written_bytes
            progress("widening", done_bytes, total_bytes)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _shards(tensors: list[_Tensor], factor: int) -> list[list[_Tensor]]:
    shards: list[list[_Tensor]] = [[]]
    shard_bytes = 0
    for tensor in tensors:
        size_bytes = tensor.widened_bytes(factor)
        if shards[-1] and shard_bytes + size_bytes > SHARD_BYTES:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(tensor)
        shard_bytes += size_bytes
    return shards


def _write_shard(path: Path, shard: list[_Tensor], factor: int) -> Iterator[int]:
    """Write header and tensors; yields the bytes of each tensor as it is written."""
    sources: dict[Path, BufferedReader] = {}
    try:
        with path.open("wb") as target:
            target.write(_header(shard, factor))
            for tensor in shard:
                file = sources.get(tensor.file) or sources.setdefault(tensor.file, tensor.file.open("rb"))
                yield target.write(_widened_data(tensor, file, factor))
    finally:
        for file in sources.values():
            file.close()


def _header(shard: list[_Tensor], factor: int) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in shard:
        end = begin + tensor.widened_bytes(factor)
        entries[tensor.name] = {
            "dtype": _STORED_NAMES.get(tensor.stored.dtype, tensor.stored.dtype),
            "shape": tensor.widened_shape(factor),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers expect the data to start at a multiple of eight
    return len(text).to_bytes(8, "little") + text


def _widened_data(tensor: _Tensor, file: BufferedReader, factor: int) -> bytearray | memoryview:
    data = bytearray(tensor.stored.count_bytes)
    file.seek(tensor.stored.offset_bytes)
    file.readinto(data)  # its header was checked against the file's length
    if tensor.widened_dim is None:
        return data
    matrix = torch.frombuffer(data, dtype=_DTYPES[tensor.stored.dtype]).view(tensor.stored.shape)
    if tensor.widened_dim == 1:
        matrix = matrix / factor
    wide = matrix.repeat_interleave(factor, dim=tensor.widened_dim)
    return wide.view(torch.uint8).numpy().data.cast("B")


def _copy_other_files(source: Path, folder: Path) -> None:
    for file in sorted(source.iterdir()):
        copied = file.suffix in _COPIED_SUFFIXES or file.name == _PREDICTOR
        if copied and file.name != "config.json" and not file.name.endswith(".safetensors.index.json"):
            shutil.copyfile(file, folder / file.name)
