"""Tiny random models of every supported family, shared by all tests.

The weights are drawn with `initializer_range=0.2`: with the default 0.02 the logits hardly depend on the experts, and a
test with two experts exchanged would still pass.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from expertflow.tests.models.outside import OUTSIDE
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FAMILIES = (
    "olmoe", "mixtral", "qwen3_moe", "qwen3_next", "gpt_oss", "deepseek_v2", "deepseek_v3", "glm4_moe", *OUTSIDE,
)  # fmt: skip
"""Transformers model types."""

VOCABULARY = 128
CONTEXT = 256

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

_MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
}

LINEAR_ATTENTION: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
"""Three layers of it to one of full attention, as Qwen has them since Qwen3-Next."""

_OWN: dict[str, dict[str, Any]] = {
    **OUTSIDE,
    "olmoe": {"num_experts": 16, "num_experts_per_tok": 4, "num_key_value_heads": 4},
    "mixtral": {"num_local_experts": 8, "sliding_window": 12},
    "qwen3_moe": {
        "num_experts": 12,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
        "head_dim": 16,
        "norm_topk_prob": True,
    },
    "qwen3_next": LINEAR_ATTENTION,
    "gpt_oss": {
        "num_hidden_layers": 4,
        "num_local_experts": 8,
        "head_dim": 16,
        "sliding_window": 8,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": CONTEXT // 4,
        },
    },
    "deepseek_v2": _MLA | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 2.0},
    "deepseek_v3": _MLA | {"routed_scaling_factor": 1.5},
    "glm4_moe": {
        "head_dim": 16,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "use_qk_norm": True,
        "attention_bias": True,
    },
}


def tiny_config(family: str, **overrides: Any) -> PreTrainedConfig:
    """A configuration of `family` small enough for a test, with everything that family is known for."""
    values = _COMMON | _OWN[family] | overrides
    config = CONFIG_MAPPING[family](**values)
    config.architectures = [_class_name(config)]
    return config


def tiny_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> PreTrainedModel:
    """A random resident model, the same for the same seed and dtype; the global random state is left as it was."""
    config = tiny_config(family, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        draw_constants(model, config.initializer_range)
        remember_longer(model)
    return model.eval()


def save_tiny(
    family: str,
    folder: Path,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: int | str = "50GB",
    **overrides: Any,
) -> PreTrainedModel:
    """Save a tiny model as hub checkpoints look: original tensor names, one tensor an expert where the hub has that.

    `max_shard_size`: bytes or text (`"20KB"`); small values give several safetensors files and an index.
    """
    model = tiny_model(family, seed, dtype, **overrides)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def _class_name(config: PreTrainedConfig) -> str:
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type])


def draw_constants(model: PreTrainedModel, spread: float) -> None:
    """Randomise what the library starts at zero or one (biases, norms, corrections): a lost one must change a logit."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and "inv_freq" not in name and bool((tensor == tensor.flatten()[0]).all()):
                tensor.add_(torch.randn_like(tensor), alpha=spread)


def remember_longer(model: PreTrainedModel) -> None:
    """Linear attention: a random state is forgotten within a token or two, so that a swapped one would hardly show."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("A_log"):
                tensor.sub_(math.log(16))
