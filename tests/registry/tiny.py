"""A tiny random model of any architecture, scaled down from the library's own default configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from expertflow.tests.models.families import draw_constants, remember_longer
from expertflow.tests.registry.demanding import COMPOSITES, DEMANDING
from expertflow.workers.model.architecture import build_on_meta, experts_modules, model_class
from expertflow.workers.model.probing.tiny_copy import shrink
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

MOE_LAYERS = 2
"""At least: a hint is about the next one."""


def full_config(model_type: str) -> PreTrainedConfig:
    """The library's default configuration, with what the published models have besides."""
    values: dict[str, Any] = DEMANDING.get(model_type, {})
    return CONFIG_MAPPING[model_type](**values)


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Small enough for a test, with every kind of layer; of a composite model, what its text part needs."""
    if model_type in COMPOSITES:
        text_type, others = COMPOSITES[model_type]
        values: dict[str, Any] = others | {"text_config": tiny_config(text_type).to_dict()}
        return CONFIG_MAPPING[model_type](**values)
    config = full_config(model_type)
    tiny = shrink(config)
    missing = MOE_LAYERS - len(list(experts_modules(build_on_meta(tiny, torch.float32))))
    if missing > 0:
        tiny = shrink(config, missing)
    tiny.architectures = [model_class(tiny).__name__]
    return tiny


def save_tiny(model_type: str, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Save a tiny model under its published tensor names, in several files; returns the model."""
    config = tiny_config(model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        draw_constants(model, 0.2)
        remember_longer(model)
    model.save_pretrained(folder, max_shard_size="100KB")
    if model_type in COMPOSITES:
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
    return model.eval()


_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}


def save_multimodal(model_type: str, folder: Path) -> None:
    """Save a tiny model with its vision part, named as such models are published."""
    config: Any = tiny_config(model_type)
    parts: dict[str, Any] = {
        "text_config": config.text_config.to_dict(),
        "vision_config": config.vision_config.to_dict() | _VISION,
    }
    whole = type(config)(**parts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(whole, dtype=torch.float32)
    model.save_pretrained(folder)
