"""Tiny Switch Transformers, whose capacity is so small that every longer prompt loses tokens to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from expertflow.tests.models.drawn import drawn
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

VOCABULARY = 128
CAPACITY = 2


def switch_config(**overrides: Any) -> SwitchTransformersConfig:
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": 48,
        "d_ff": 32,
        "d_kv": 12,
        "num_heads": 4,
        "num_layers": 4,
        "num_decoder_layers": 4,
        "num_sparse_encoder_layers": 2,
        "num_sparse_decoder_layers": 2,
        "num_experts": 8,
        "expert_capacity": CAPACITY,
        "decoder_start_token_id": 0,
        "tie_word_embeddings": False,
    }
    config = SwitchTransformersConfig(**values | overrides)
    config.architectures = ["SwitchTransformersForConditionalGeneration"]
    return config


def tiny_switch(
    seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> SwitchTransformersForConditionalGeneration:
    config = switch_config(**overrides)
    return drawn(SwitchTransformersForConditionalGeneration, config, seed, dtype, ("layer_norm.weight",))


def save_switch(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> None:
    tiny_switch(seed, dtype, **overrides).save_pretrained(folder)


@torch.inference_mode()
def stepwise(model: Any, prompt: list[int], following: list[int]) -> torch.Tensor:
    """Logits [following + 1, vocabulary] of the library on a prompt alone, one decoder token at a time."""
    encoded = model.get_encoder()(input_ids=torch.tensor([prompt]))
    cache, rows = EncoderDecoderCache(DynamicCache(), DynamicCache()), []
    for token in [model.config.decoder_start_token_id, *following]:
        out = model(
            encoder_outputs=encoded,
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            decoder_input_ids=torch.tensor([[token]]),
            past_key_values=cache,
        )
        rows.append(out.logits[0, -1])
    return torch.stack(rows)
