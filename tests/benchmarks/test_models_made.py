"""The models that benchmarks make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.benchmarks import models
from expertflow.benchmarks.models import folder_of, model_q
from transformers import AutoModelForCausalLM

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and shapes of model Q that take no time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(models, "MODEL_Q", models.MODEL_Q | SMALL)
    return tmp_path / "expertflow"


def test_model_q_is_a_whole_checkpoint_of_so_many_layers(cache: Path) -> None:
    folder = model_q(3)
    made: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    loaded, info = made
    assert {name for name, keys in info.items() if keys} == set()
    assert (type(loaded).__name__, loaded.dtype, len(loaded.model.layers)) == ("Qwen3MoeForCausalLM", torch.bfloat16, 3)
    logits = loaded(torch.tensor([[1, 2, 3]])).logits
    assert torch.isfinite(logits).all() and logits.std() > 0
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert {file.name for file in folder.glob("*.safetensors")} == set(index["weight_map"].values())


def test_model_q_is_made_once_and_found_by_its_name(cache: Path) -> None:
    folder = folder_of("q-2")
    (folder / "mark").touch()
    assert (folder_of("q-2") / "mark").exists()
    assert folder == cache / "model-q-2"
    assert not list(cache.glob("*.partial"))
