"""Tiny configurations of the families outside transformers' experts interface, which have adapters of ours."""

from __future__ import annotations

from typing import Any

OUTSIDE: dict[str, dict[str, Any]] = {
    "llama4_text": {
        "num_hidden_layers": 4,
        "num_local_experts": 8,
        "intermediate_size_mlp": 40,
        "moe_layers": [1, 2, 3],
        "head_dim": 16,
        "no_rope_layer_interval": 2,
        "attention_chunk_size": 8,
        "floor_scale": 4,
        "attn_scale": 0.5,
    },
    "dbrx": {
        "d_model": 48,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 2.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 2},
    },
    "jetmoe": {
        "num_hidden_layers": 2,
        "num_local_experts": 8,
        "kv_channels": 8,
    },
}
"""By model type; what they have in common with the others is in families.py."""
