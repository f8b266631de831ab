"""GGUF files of tiny random models: tensors and metadata named as llama.cpp's converter names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from expertflow.workers.checkpoint.gguf.block_types import BLOCK_TYPES
from expertflow.workers.checkpoint.gguf.model_files import model_files
from expertflow.workers.model.architecture import build_on_meta, load_config, model_class
from expertflow.workers.surveyor.gguf.describing import write_description
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

WIDTH = 256
"""Of hidden states and experts: one block of the K types."""
ARCHITECTURES = {
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "minimax_m2": "minimax-m2",
    "gpt_oss": "gpt-oss",
}
_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "moe_intermediate_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "num_experts_per_tok": 2,
    "initializer_range": 0.1,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_OWN: dict[str, dict[str, Any]] = {
    "qwen2_moe": {"num_experts": 6, "shared_expert_intermediate_size": WIDTH, "tie_word_embeddings": True},
    "qwen3_moe": {"num_experts": 6, "norm_topk_prob": True, "tie_word_embeddings": False},
    "gpt_oss": {
        "num_local_experts": 6,
        "sliding_window": 8,
        "tie_word_embeddings": False,
        "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 64,
        },
    },
    "minimax_m2": {"num_local_experts": 6, "rotary_dim": 32, "tie_word_embeddings": False},
}
TypeOf = Callable[[str], str]
"""Type in which the tensor of that name is stored."""


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """Return a tiny model in float32 whose logits depend on its experts."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family](**_SIZES | _OWN[family])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():  # norms are ones, and biases zeros: one taken for another would change nothing
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or name.endswith("bias"):
                parameter += torch.randn_like(parameter) / 10
    return model


def stored_tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """Return float32 tensors by llama.cpp's names."""
    architecture = next(
        number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == ARCHITECTURES[model.config.model_type]
    )
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    stored: dict[str, np.ndarray] = {}
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        layer = name.split(".")[2] if name.startswith("model.layers.") else ""
        if ".mlp.experts." in name and model.config.model_type == "gpt_oss":
            stored |= _gpt_oss_experts(name, layer, values)
        elif name.endswith(".sinks"):
            stored[f"blk.{layer}.attn_sinks.weight"] = values
        elif name.endswith("experts.gate_up_proj"):
            stored[f"blk.{layer}.ffn_gate_exps.weight"], stored[f"blk.{layer}.ffn_up_exps.weight"] = np.split(
                values, 2, 1
            )
        elif name.endswith("experts.down_proj"):
            stored[f"blk.{layer}.ffn_down_exps.weight"] = values
        elif name.endswith("e_score_correction_bias"):
            stored[f"blk.{layer}.exp_probs_b.bias"] = values
        elif name not in tied and (own := names.get_name(name, (".weight", ".bias"))):
            stored[own] = values
    return stored


def _gpt_oss_experts(name: str, layer: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Return the parts of a parameter: rows of gate and up alternate in the model, which has the transposes."""
    kind = "bias" if name.endswith("_bias") else "weight"
    stored = values if kind == "bias" else values.swapaxes(1, 2)
    if "down_proj" in name:
        return {f"blk.{layer}.ffn_down_exps.{kind}": stored}
    return {f"blk.{layer}.ffn_{part}_exps.{kind}": stored[:, at::2] for at, part in enumerate(("gate", "up"))}


def write_gguf(
    file: Path,
    model: PreTrainedModel,
    type_of: TypeOf,
    extra: Callable[[Any], None] = lambda writer: None,
    without: str = "",
    tensors_a_part: int = 0,
    squeeze: bool = True,
) -> Path:
    """Write a model, each tensor in the type that `type_of` names, with `extra` metadata; all tensors but one.

    `squeeze`: without axes of one value, as older files are, and as transformers reads them.
    """
    writer = gguf.GGUFWriter(file, ARCHITECTURES[model.config.model_type], split_max_tensors=tensors_a_part)
    _write_sizes(writer, model.config)
    extra(writer)
    for name, values in stored_tensors(model).items():
        if name != without:
            raw, kind = pack(
                np.squeeze(values) if squeeze else values, "F32" if name.endswith(".bias") else type_of(name)
            )
            writer.add_tensor(name, raw, raw_dtype=kind)
    finish(writer)
    return file


def finish(writer: gguf.GGUFWriter) -> None:
    """Write everything that a writer was given."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pack(values: np.ndarray, type_name: str) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    """Return stored values and their type. The K types, which the package cannot write, get random valid blocks."""
    kind = gguf.GGMLQuantizationType[type_name]
    values = np.ascontiguousarray(values)
    if values.ndim < 2 or type_name == "F32":
        return np.ascontiguousarray(values, dtype=np.float32), gguf.GGMLQuantizationType.F32
    try:
        return gguf.quants.quantize(values, kind), kind
    except NotImplementedError:
        return random_blocks(values, type_name), kind


_SCALES = {"Q4_K": (0, 260), "Q5_K": (0, 523), "Q6_K": (208, 1367), "IQ4_NL": (0, 65), "IQ4_XS": (0, 1200)}
"""Byte at which the scale of a block lies, and the deviation of random codes under a scale of one."""
_MINIMA = {"Q4_K": 7.5, "Q5_K": 15.5}
"""Scale of the minima, two bytes on, that makes the mean zero: else all rows look alike, and no expert matters."""


def random_blocks(values: np.ndarray, type_name: str) -> np.ndarray:
    """Return uint8 [..., bytes of a row], random codes whose values deviate as `values` do."""
    own, (at, deviation) = BLOCK_TYPES[type_name], _SCALES[type_name]
    draw = np.random.default_rng(int(abs(values).sum() * 1000) % 2**32)
    raw = draw.integers(0, 256, (values.size // own.values, own.size_bytes), dtype=np.uint8)
    scale = values.std() / deviation
    raw[:, at : at + 2] = np.float16(scale).reshape(1).view(np.uint8)
    if type_name in _MINIMA:
        raw[:, at + 2 : at + 4] = np.float16(scale * _MINIMA[type_name]).reshape(1).view(np.uint8)
    return raw.reshape(*values.shape[:-1], -1)


def _write_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(getattr(config, "rotary_dim", config.head_dim))
    writer.add_expert_count(getattr(config, "num_experts", None) or config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", config.intermediate_size))
    if shared := getattr(config, "shared_expert_intermediate_size", 0):
        writer.add_expert_shared_feed_forward_length(shared)
    if config.model_type == "gpt_oss":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
        writer.add_rope_scaling_orig_ctx_len(config.rope_parameters["original_max_position_embeddings"])
    if config.model_type == "minimax_m2":
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_vocab_size(config.vocab_size)
    writer.add_eos_token_id(config.eos_token_id)
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)


def describe_here(file: Path, folder: Path) -> Path:
    """Describe a file in `folder`, in this process: the other one imports torch anew."""
    folder.mkdir()
    write_description(folder, model_files(file))
    return folder


def library_gguf(file: Path, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model with the weights that transformers' own loader of GGUF files gives.

    `from_pretrained(gguf_file=…)` does the same, but needs `accelerate`, and a configuration with the sizes of one
    published model of the family.
    """
    config = load_config(folder)
    tensors = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=build_on_meta(config, dtype))[
        "tensors"
    ]
    loaded = model_class(config).from_pretrained(None, config=config, state_dict=tensors, dtype=dtype)
    return loaded.eval()


def mixed_types(name: str) -> str:
    """Return the type of a tensor in a file like Q4_K_M, whose layers differ."""
    if "ffn_down_exps" in name or "attn_v" in name:
        return "Q6_K" if name.startswith("blk.0.") else "Q4_K"
    return "Q6_K" if name.startswith(("output.", "token_embd")) else "Q4_K"
