"""Tiny NLLB-MoE models, whose capacity is so small that every longer prompt loses choices to it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from expertflow.tests.models.drawn import drawn
from transformers import NllbMoeConfig, NllbMoeForConditionalGeneration

VOCABULARY = 128
LANGUAGE = 100
"""A token that stands for the target language."""


def nllb_config(**overrides: Any) -> NllbMoeConfig:
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "d_model": 48,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_sparse_step": 2,
        "decoder_sparse_step": 2,
        "num_experts": 8,
        "moe_eval_capacity_token_fraction": 0.2,
        "init_std": 0.2,
    }
    config = NllbMoeConfig(**values | overrides)
    config.architectures = ["NllbMoeForConditionalGeneration"]
    return config


def tiny_nllb(seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> NllbMoeForConditionalGeneration:
    config = nllb_config(**overrides)
    return drawn(NllbMoeForConditionalGeneration, config, seed, dtype, ("layer_norm.weight", ".bias"))


def save_nllb(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> None:
    tiny_nllb(seed, dtype, **overrides).save_pretrained(folder)


def straight_line(block: Any, hidden: torch.Tensor) -> torch.Tensor:
    """What `NllbMoeSparseMLP` of transformers 4 made of one sequence [tokens, width]: one token, one choice at a time.

    From its published description and that of its options; nothing of the library is called.
    """
    router, experts = block.router, [block.experts[f"expert_{each}"] for each in range(block.num_experts)]
    logits = (hidden @ router.classifier.weight.T).tolist()
    chances = [_softmax(each) for each in logits]
    first = [max(range(len(each)), key=each.__getitem__) for each in chances]
    second = [
        max((e for e in range(len(each)) if e != best), key=each.__getitem__)
        for each, best in zip(logits, first, strict=True)
    ]
    tokens = range(len(hidden))
    if router.batch_prioritized_routing:
        tokens = sorted(tokens, key=lambda token: -chances[token][first[token]])
    fraction = router.moe_eval_capacity_token_fraction
    left = [math.ceil(fraction * len(hidden)) if fraction > 0 else block.capacity] * len(experts)
    kept = {(token, choice): False for token in tokens for choice in (0, 1)}
    for choice, chosen in enumerate((first, second)):
        for token in tokens:  # all first choices count against second ones, those beyond the capacity included
            kept[token, choice] = left[chosen[token]] > 0
            left[chosen[token]] -= 1
    out = torch.zeros_like(hidden)
    for token in tokens:
        pair = [(first[token], kept[token, 0]), (second[token], kept[token, 1])]
        early = router.normalize_router_prob_before_dropping
        total = sum(chances[token][expert] for expert, stays in pair if stays or early)
        for expert, stays in pair:
            if stays:
                inner = torch.relu(experts[expert].fc1(hidden[token]))
                weight = chances[token][expert] / total * (1 - block.experts.moe_token_dropout)
                out[token] += weight * experts[expert].fc2(inner)
    return out


def _softmax(values: list[float]) -> list[float]:
    best = max(values)
    powers = [math.exp(value - best) for value in values]
    return [power / sum(powers) for power in powers]
