"""Largest sizes in a small copy of a configuration, by the names that transformers' configurations use."""

from __future__ import annotations

from typing import Any

VOCABULARY = 64
WINDOW = 6
HIDDEN, HEADS, HEAD = 32, 4, 8

_MAX_SIZES: dict[str, int] = {
    "vocab_size": VOCABULARY,
    "unpadded_vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    # Widths
    "hidden_size": HIDDEN,
    "d_model": HIDDEN,
    "d_ff": 32,
    "d_kv": HEAD,
    "ffn_hidden_size": 16,
    "intermediate_size": 32,
    "intermediate_size_mlp": 32,
    "dense_intermediate_size": 32,
    "prefix_dense_intermediate_size": 32,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_experts_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "hidden_size_per_layer_input": HEAD,
    "router_hidden_size": 16,
    "moe_latent_size": 16,
    "gated_norm_rank": 8,
    "hc_lowrank": 8,
    # Experts
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "top_k_experts": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "moe_top_k": 2,
    "topk_group": 1,
    "n_group": 2,
    "num_expert_group": 2,
    # Attention
    "num_attention_heads": HEADS,
    "num_heads": HEADS,
    "n_heads": HEADS,
    "kv_n_heads": HEADS // 2,
    "head_dim": HEAD,
    "kv_channels": HEAD,
    "rotary_dim": HEAD,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "o_lora_rank": 16,
    "qk_nope_head_dim": HEAD,
    "qk_rope_head_dim": HEAD,
    "qk_head_dim": 2 * HEAD,
    "v_head_dim": HEAD,
    # Windows, and what selects or compresses positions: short enough to matter in a short text
    "sliding_window": WINDOW,
    "sliding_window_size": WINDOW,
    "attention_chunk_size": WINDOW,
    "floor_scale": WINDOW,
    "swa_num_attention_heads": HEADS,
    "swa_num_key_value_heads": HEADS // 2,
    "swa_head_dim": HEAD,
    "rel_extent": 2 * WINDOW,
    "index_head_dim": 2 * HEAD,
    # Scores are sums of positive parts over heads: with few heads many scores are zero, and the winner is chance.
    "index_n_heads": 16,
    "index_topk": WINDOW,
    "index_block_size": 4,
    "index_topk_blocks": 2,
    "indexer_n_heads": 16,
    "indexer_head_dim": 2 * HEAD,
    "indexer_budget": 2 * WINDOW,
    "indexer_compress_ratio": 4,
    "heavily_compressed_attention": 8,
    # Encoders and decoders
    "num_decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_sparse_step": 2,
    "decoder_sparse_step": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
    # Linear attention and state spaces
    "linear_num_heads": HEADS,
    "linear_head_dim": HEAD,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": HEAD,
    "linear_value_head_dim": HEAD,
    "mamba_n_heads": 2 * HIDDEN // HEAD,
    "mamba_d_head": HEAD,
    "mamba_num_heads": 2 * HIDDEN // HEAD,
    "mamba_head_dim": HEAD,
    "mamba_d_state": 8,
    "ssm_state_size": 8,
    "mamba_dt_rank": 8,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "block_size": 8,
    # n-gram embeddings
    "ple_embed_dim": HIDDEN,
    "ngram_vocab_size_base": VOCABULARY,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 4,
}
"""Largest value by name; a smaller value stays."""


def cap_size(name: str, value: Any) -> Any:
    """Return `value` of the setting `name`, it and all settings nested in it cut down to a small copy's sizes."""
    if isinstance(value, dict):
        return {inner: cap_size(inner, nested) for inner, nested in value.items()}
    if isinstance(value, list):
        return [cap_size(name, item) for item in value]
    if name not in _MAX_SIZES or isinstance(value, bool) or not isinstance(value, int):
        return value
    return min(value, _MAX_SIZES[name])


def cap_override(name: str, value: Any, usual: Any) -> Any:
    """Return the same for a value that one layer has instead of the `usual` one: wider heads stay wider."""
    return 2 * HEAD if name == "head_dim" and value > usual else cap_size(name, value)
