"""Make the models that are measured: the widened built-in model, and model R (random, OLMoE architecture, 3.3 GB)."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from expertflow.configs.user_cache import cache_folder
from expertflow.runtime.demo.widened import widened_copy

MODEL_R = {
    "vocab_size": 8192,
    "hidden_size": 1024,
    "intermediate_size": 512,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXAMPLES = Path(__file__).parents[1] / "examples"


def model_r() -> Path:
    """Return the folder of model R; made at the first call (about a minute, 3.3 GB)."""
    folder = cache_folder() / "model-r"
    if not folder.exists():
        _save_random(folder)
    return folder


def _save_random(folder: Path) -> None:
    import torch
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(0)
    config = OlmoeConfig(**MODEL_R, dtype="bfloat16")
    model = OlmoeForCausalLM._from_config(config, dtype=torch.bfloat16)
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, max_shard_size="1GB")
    partial.rename(folder)


def widened() -> Path:
    """Return the folder of the widened built-in model (0.9 GB of experts), made at first and shared with the demo."""
    return widened_copy(EXAMPLES / "model", cache_folder())


def folder_of(name: str) -> Path:
    """Return the folder of model `r`, of `widened`, or of `widened-N` (by the factor N; 512: 7.5 GB of experts)."""
    if name == "r":
        return model_r()
    if name == "widened":
        return widened()
    return widened_copy(EXAMPLES / "model", cache_folder(), int(name.removeprefix("widened-")))


def held_out_prompts(count: int, characters: int = 160) -> list[str]:
    """Return stretches of the held-out text, the same ones at every call."""
    text = (EXAMPLES / "held_out.txt").read_text()
    rng = random.Random(1)
    return [text[start : start + characters] for start in (rng.randrange(len(text) - characters) for _ in range(count))]
