"""The `quantization_config` of a config.json: the formats that are read, and errors for the others. Without torch.

Block FP8 (DeepSeek-V3, arXiv 2412.19437, section 3.3) stores each weight in 8 bits and one scale for each block of a
matrix; MXFP4 (OCP Microscaling 1.0, as gpt-oss uses it) stores it in 4 bits and one exponent for each 32 of a row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import CheckpointError

CODED_METHODS = frozenset({"compressed-tensors", "gptq", "awq"})
"""Values of `quant_method` whose weights are read by the shapes and types of their tensors (workers/packed)."""
READ_METHODS = frozenset({"fp8", "mxfp8", "mxfp4"}) | CODED_METHODS
"""Values of `quant_method` whose checkpoints are read."""

UNQUANTISED = (
    "Use the original checkpoint (bf16, fp16 or fp32), or one in block FP8, MXFP4, or compressed-tensors, GPTQ or AWQ "
    "with 4 or 8 bits"
)
_COMPRESSED = frozenset(
    {
        "pack-quantized",
        "int-quantized",
        "float-quantized",
        "naive-quantized",
        "nvfp4-pack-quantized",
        "mxfp4-pack-quantized",
        "mixed-precision",
        "dense",
    }
)
"""Formats of compressed-tensors that are read."""
_WORDS = {"gptq": ("checkpoint_format", ("gptq", "gptq_v2")), "awq": ("version", ("gemm",))}
"""Field that says how words are laid out, and the layouts that are read, by method."""

_AGAIN = "Download the checkpoint again"


def quantisation_of(config: dict[str, Any]) -> Any:
    """Return the `quantization_config` of a config.json, at the top or of its text model; None if there is none."""
    text = config.get("text_config")
    nested = text.get("quantization_config") if isinstance(text, dict) else None
    return config.get("quantization_config") or nested or config.get("compression_config")


def refuse_unread(config: dict[str, Any], file: Path) -> None:
    """Raise CheckpointError, by name, for a quantised checkpoint in a format that is not read."""
    stated = quantisation_of(config)
    if not stated:
        return
    method = _method(stated)
    if method not in READ_METHODS or not isinstance(stated, dict):
        raise CheckpointError(f"quantisation '{method}' is not supported", str(file), UNQUANTISED)
    if reason := _unread_reason(method, stated):
        raise CheckpointError(f"quantisation '{method}' is not supported: {reason}", str(file), UNQUANTISED)
    _check_block(stated.get("weight_block_size"), file)
    if stated.get("modules_to_convert"):
        raise CheckpointError("quantised embeddings (modules_to_convert) are not supported", str(file), UNQUANTISED)


def _unread_reason(method: str, stated: dict[str, Any]) -> str:
    """Return why weights that are stated so are not read; empty if they are."""
    if method == "compressed-tensors":
        return _unread_compressed(stated)
    if method not in _WORDS:
        return ""
    if stated.get("bits") != 4:
        return f"it has {stated.get('bits')} bits, only 4 are read"
    field, layouts = _WORDS[method]
    layout = stated.get(field) or layouts[0]
    return "" if str(layout).lower() in layouts else f"{field} is {layout}"


def _unread_compressed(stated: dict[str, Any]) -> str:
    groups = stated.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
        return "it has no config_groups"
    if stated.get("transform_config"):
        return "its weights are transformed (transform_config)"
    sparsity = stated.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        return "its weights are sparse (sparsity_config)"
    for form in [stated.get("format"), *(group.get("format") for group in groups.values())]:
        if form is not None and not (isinstance(form, str) and form in _COMPRESSED):
            return f"format {form}"
    return next((reason for group in groups.values() if (reason := _unread_group(group))), "")


def _unread_group(group: dict[str, Any]) -> str:
    """Return why a group of layers is not read."""
    weights = group.get("weights")
    if not isinstance(weights, dict):
        return "a group quantises activations alone"
    if weights.get("num_bits") not in (4, 8):
        return f"weights of {weights.get('num_bits')} bits, only 4 and 8 are read"
    return ""


def _check_block(block: Any, file: Path) -> None:
    if block is None:
        return
    if not isinstance(block, list) or len(block) != 2 or not all(isinstance(size, int) and size > 0 for size in block):
        what = f"quantization_config cannot be read (weight_block_size must be two positive numbers, not {block})"
        raise CheckpointError(what, str(file), _AGAIN)


def _method(stated: Any) -> str:
    if not isinstance(stated, dict):
        return str(stated)
    if stated.get("load_in_4bit") or stated.get("load_in_8bit"):
        return "bitsandbytes"
    return str(stated.get("quant_method") or "unknown")


def block_of(name: str, shape: list[int], grid: list[int], stated: list[int] | None) -> list[int]:
    """Return rows and columns of the block that each scale of `grid` (rows, columns) covers in a matrix of `shape`.

    It is the `stated` size of config.json (a block at the edge may be smaller). Where the grid does not fit that, it is
    the size that divides the matrix evenly. Raises CheckpointError when neither fits.
    """
    if len(shape) != len(grid):
        raise CheckpointError(f"is stored with shape {shape}, its scales with {grid}", name, _AGAIN)
    if stated and [-(-size // block) for size, block in zip(shape, stated, strict=True)] == grid:
        return list(stated)
    if 0 in grid or any(size % count for size, count in zip(shape, grid, strict=True)):
        what = f"has scales of shape {grid}, which do not divide its shape {shape}"
        raise CheckpointError(what, name, _AGAIN)
    return [size // count for size, count in zip(shape, grid, strict=True)]
