"""The models that are measured: the widened built-in model, and model R (random weights, OLMoE architecture, 3.3
GB)."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from expertflow.runtime.demo.widened import cache_folder, widened_copy

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
    """Folder of model R; made at the first call (about a minute, 3.3 GB)."""
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
    """Folder of the widened built-in model (about 0.9 GB of experts); made at the first call, shared with the demo."""
    return widened_copy(EXAMPLES / "model", cache_folder())


def held_out_prompts(count: int, characters: int = 160) -> list[str]:
    """Stretches of the held-out text, the same ones at every call."""
    text = (EXAMPLES / "held_out.txt").read_text()
    rng = random.Random(1)
    return [text[start : start + characters] for start in (rng.randrange(len(text) - characters) for _ in range(count))]
