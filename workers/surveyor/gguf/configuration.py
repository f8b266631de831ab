"""From the metadata of a GGUF file to the values of a config.json, as transformers reads them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS, get_gguf_config
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES, load_gguf_checkpoint
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ....errors import CheckpointError
from ...checkpoint.gguf.container import Container, Omitted
from ...model.configuration import default_values

TOKENS = "tokenizer.ggml.tokens"
_ORIGINAL = "Use the original model's folder in safetensors format"
_WIDTHS = {
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
_LEFT_OUT = {
    "qwen2_moe": _WIDTHS,
    "qwen3_moe": _WIDTHS,
    "gpt_oss": {
        "expert_feed_forward_length": "intermediate_size",
        "attention.key_length": "head_dim",
        "attention.sliding_window": "sliding_window",
    },
}
"""Sizes by model type that the library leaves at the default of one published model."""
_ROPE_KINDS = ("linear", "yarn")
_ROPE_NAMES = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
    "attn_factor": "attention_factor",
}


def config_values(containers: list[Container]) -> dict[str, Any]:
    """Return the values of a config.json for a model. Raises CheckpointError for one that transformers cannot map."""
    first = containers[0]
    names = tuple(tensor.name for container in containers for tensor in container.tensors)
    if first.architecture in GGUF_CONFIG_ARCHS:
        counted = {key: _count(value) for key, value in first.metadata.items()}
        values = get_gguf_config(counted, names)
    else:
        values = _legacy_values(first, names)
    return values | {"dtype": compute_dtype(containers)}


def compute_dtype(containers: list[Container]) -> str:
    """Return the type to compute in: that of a file without quantised tensors, else bfloat16."""
    stored = {tensor.type.name for container in containers for tensor in container.tensors}
    if not stored <= {"F32", "F16", "BF16"}:
        return "bfloat16"
    return "bfloat16" if "BF16" in stored else "float16" if "F16" in stored else "float32"


def _legacy_values(first: Container, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the values by the older of the library's two ways, which reads a file: one without weights is made.

    In a whole file it looks at every text of the vocabulary, which takes minutes.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "header.gguf")
        _write_header(file, first, names)
        try:
            values = load_gguf_checkpoint(str(file))["config"]
        except (ValueError, KeyError) as error:
            known = ", ".join(sorted({*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS}))
            what = f"is a model of architecture {first.architecture}, which transformers does not read ({error})"
            raise CheckpointError(what, str(first.path), f"{_ORIGINAL}. It reads {known}") from error
    return values | _left_out(first, values) | _rope(first, values)


def _write_header(file: Path, first: Container, names: tuple[str, ...]) -> None:
    """Write a GGUF file with the numbers and texts of the metadata, and a tensor of one value for each name."""
    writer = gguf.GGUFWriter(file, first.architecture)
    for key, value in first.metadata.items():
        if key.startswith(("general.architecture", f"{first.architecture}.rope.scaling.")):
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_int64(key, value)
        elif isinstance(value, float):
            writer.add_float64(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
    if f"{first.architecture}.vocab_size" not in first.metadata:
        writer.add_vocab_size(_vocabulary(first))
    for name in names:
        writer.add_tensor(name, np.zeros(1, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _vocabulary(first: Container) -> int:
    tokens = first.metadata.get(TOKENS)
    if not isinstance(tokens, Omitted):
        raise CheckpointError("has no vocabulary and states no size of one", str(first.path), _ORIGINAL)
    return tokens.count


def _count(value: Any) -> Any:
    return value.count if isinstance(value, Omitted) else value


def _left_out(first: Container, values: dict[str, Any]) -> dict[str, int]:
    names = _LEFT_OUT.get(values.get("model_type", ""), {})
    stated = {own: first.number(f"{first.architecture}.{key}") for key, own in names.items()}
    return {name: value for name, value in stated.items() if value is not None}


def _rope(first: Container, values: dict[str, Any]) -> dict[str, Any]:
    """Return scaled rotary positions, which the library does not read, under its own names for them.

    What a file does not state is the default of the family.
    """
    prefix = f"{first.architecture}.rope.scaling."
    stated = {key.removeprefix(prefix): value for key, value in first.metadata.items() if key.startswith(prefix)}
    kind = stated.get("type", "none")
    if kind == "none":
        return {}
    if kind not in _ROPE_KINDS:
        raise CheckpointError(f"states {prefix}type = {kind}, which is not supported", str(first.path), _ORIGINAL)
    usual = default_values(CONFIG_MAPPING[values["model_type"]]).get("rope_parameters") or {}
    same = usual if usual.get("rope_type") == kind else {"rope_type": kind}
    scaling = same | {own: stated[key] for key, own in _ROPE_NAMES.items() if key in stated}
    return {"rope_parameters": scaling | {"rope_theta": values.get("rope_theta", same.get("rope_theta"))}}
