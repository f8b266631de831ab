"""Widening: makes a small trained model into a big one that computes the same function.

Every expert neuron is repeated N times and the down projection divided by N, so the repeats add up to the
output of the one neuron. For N a power of two the division only moves exponents: nothing is rounded.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...errors import UsageError
from .config_file import read_config
from .headers import StoredTensor, checkpoint_files, read_headers
from .shards import OutputTensor, ReportProgress, check_destination, copy_other_files, name_failures, write_shards

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_EXPERT = re.compile(r"\.experts\.\d+\.(?:(gate_proj|up_proj)|(down_proj))\.weight$")


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the source; its `widened_dim` is repeated (None: copied as it is)."""

    stored: StoredTensor
    file: Path
    widened_dim: int | None

    def widened(self, factor: int) -> OutputTensor:
        stored, is_copied = self.stored, self.widened_dim is None
        shape = [size * factor if dim == self.widened_dim else size for dim, size in enumerate(stored.shape)]
        count_bytes = stored.count_bytes * (1 if is_copied else factor)
        return OutputTensor(stored.name, stored.dtype, shape, count_bytes, partial(_widened_data, self, factor))


def widen(source: Path, destination: Path, factor: int, progress: ReportProgress | None = None) -> None:
    """Write to `destination` a copy of the model folder `source` whose experts are `factor` times as wide.

    The copy gives the same logits (to rounding of the sums) and the same routing. One tensor is held at a time.
    `destination` appears only when complete; `progress` is called with (what, bytes done, bytes in all).
    Raises CheckpointError if the source is broken. Raises UsageError if the factor is not a power of two, `destination`
    exists or its disk is too small; also for experts that are not separate gate, up and down projections in bfloat16 or
    float32 (as in Qwen3-MoE, OLMoE).
    """
    if factor < 1 or factor & (factor - 1):
        raise UsageError(f"the factor {factor} is not a power of two", "factor", "Choose 2, 4, 8, … 64")
    check_destination(source, destination, 0)
    tensors = _read_plan(source)
    config = _widened_config(source, tensors, factor)
    widened = [tensor.widened(factor) for tensor in tensors]
    check_destination(source, destination, sum(tensor.count_bytes for tensor in widened))
    with name_failures(destination.parent):
        _write(source, destination, widened, config, progress or _no_progress)


def _write(
    source: Path, destination: Path, tensors: list[OutputTensor], config: dict[str, Any], progress: ReportProgress
) -> None:
    """Write the copy under another name, and give it its own when it is complete."""
    fresh = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        write_shards(fresh, tensors, "widening", progress)
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        copy_other_files(source, fresh)
        fresh.chmod(0o755)
        fresh.rename(destination)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _no_progress(what: str, done_bytes: int, total_bytes: int) -> None:
    """Ignore progress, for a caller that does not watch."""


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


def _widened_data(tensor: _Tensor, factor: int) -> bytearray | memoryview:
    data = tensor.stored.read(tensor.file)
    if tensor.widened_dim is None:
        return data
    matrix = torch.frombuffer(data, dtype=_DTYPES[tensor.stored.dtype]).view(tensor.stored.shape)
    if tensor.widened_dim == 1:
        matrix = matrix / factor
    wide = matrix.repeat_interleave(factor, dim=tensor.widened_dim)
    return wide.view(torch.uint8).numpy().data.cast("B")
