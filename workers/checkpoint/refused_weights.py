"""Refuses weights in formats that are not read, by their files, where config.json says nothing. Without torch.

Old quantised checkpoints state their format in a file of their own (`quantize_config.json`, `hf_quant_config.json`).
Their tensors have names that no plain one has. Names as AutoGPTQ, AutoAWQ, bitsandbytes, Model Optimizer, MLX and
compressed-tensors write them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from .headers import indexed_tensors
from .quantisation_config import UNQUANTISED, quantisation_of

_PACKINGS = (
    ("gptq", ("g_idx",)),
    ("gptq or awq", ("qweight", "qzeros")),
    ("bitsandbytes", ("absmax", "quant_map", "bitsandbytes__nf4", "bitsandbytes__fp4", ".SCB")),
    ("nvfp4", ("weight_scale_2", "proj_scale_2")),
    ("compressed-tensors", ("weight_packed", "proj_packed")),
    ("fp8 of Model Optimizer", ("input_scale",)),
    ("mlx", (".scales", ".biases")),
    ("mxfp4", ("proj_blocks",)),
)
"""Name of each format, and endings of its tensors' names; the first that fits is reported."""

OTHER_WEIGHTS = (".gguf", ".bin", ".pt", ".pth")


def refuse_packed(names: Iterable[str], config: dict[str, Any], folder: Path) -> None:
    """Raise CheckpointError, by name, for tensors of a quantisation that `config` (a config.json) does not state."""
    if quantisation_of(config):
        return
    stored = list(names)
    for packing, endings in _PACKINGS:
        if found := next((name for name in stored if name.endswith(endings)), None):
            what = f"quantisation '{packing}' is not supported (tensor {found}; config.json does not say)"
            raise CheckpointError(what, str(folder), UNQUANTISED)


def refuse_packed_index(config: dict[str, Any], folder: Path, listed: Collection[str] = ()) -> None:
    """Raise the same by an index alone, before any weight is present; nothing where the weights have none.

    Files that are `listed` count as being in the folder.
    """
    refuse_packed(indexed_tensors(folder, listed, config), config, folder)


def other_weights(names: Iterable[str]) -> str:
    """Return which weight files that are not read are among file names: `; it has .bin, .gguf`, or nothing."""
    suffixes = sorted({suffix for name in names if (suffix := Path(name).suffix) in OTHER_WEIGHTS})
    return f"; it has {', '.join(suffixes)}" if suffixes else ""
