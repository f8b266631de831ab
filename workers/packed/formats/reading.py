"""Reads the stored tensors of one matrix into a `Coding`, by the names that each format gives them. Without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..coding import Coding, Facts
from .compressed_tensors import read_compressed_tensors
from .words import read_awq, read_gptq, read_gptq_v2

Reader = Callable[[Mapping[str, Facts], list[int]], Coding | None]
"""Takes the facts of a matrix's tensors by the last part of their names, and its shape [rows, columns].

Returns None for a matrix that is not quantised. Raises ValueError, with the reason, for one that cannot be read.
"""

READERS: dict[str, Reader] = {
    "compressed-tensors": read_compressed_tensors,
    "gptq": read_gptq,
    "gptq_v2": read_gptq_v2,
    "awq": read_awq,
}
"""Readers by format: the `quant_method` of config.json, gptq by its `checkpoint_format`."""


def code(quantised: Mapping[str, Any], stored: Mapping[str, Facts], shape: list[int]) -> Coding | None:
    """Return the coding of a matrix [rows, columns] under a `quantization_config`, as `Reader` does."""
    ignored = () if quantised.get("desc_act") else ("g_idx",)  # without act-order it says nothing
    return READERS[format_of(quantised)]({own: facts for own, facts in stored.items() if own not in ignored}, shape)


NAMES: dict[str, list[str]] = {
    "compressed-tensors": [
        "weight",
        "weight_packed",
        "weight_scale",
        "weight_zero_point",
        "weight_global_scale",
        "weight_g_idx",
        "weight_shape",
        "input_scale",
        "input_zero_point",
        "input_global_scale",
    ],
    "gptq": ["weight", "qweight", "qzeros", "scales", "g_idx"],
    "awq": ["weight", "qweight", "qzeros", "scales"],
}
"""Last parts of the names of tensors that are stored for a weight, by `quant_method`."""


def format_of(quantised: Mapping[str, object]) -> str:
    """Return the key in READERS of a `quantization_config`."""
    method = str(quantised.get("quant_method"))
    return "gptq_v2" if method == "gptq" and quantised.get("checkpoint_format") == "gptq_v2" else method
