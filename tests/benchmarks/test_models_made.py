"""The models that benchmarks make."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.benchmarks import models
from expertflow.benchmarks.compare import made_model
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


def test_model_q_in_a_named_folder_is_removed_after_the_run_unless_it_was_there(cache: Path, tmp_path: Path) -> None:
    named = tmp_path / "named"
    named.mkdir()
    (named / "other").touch()
    arguments = argparse.Namespace(kind="model-q", layers=1, folder=named)
    with made_model(arguments) as folder:
        assert folder.parent == named and (folder / "config.json").is_file() and not cache.exists()
    assert [file.name for file in named.iterdir()] == ["other"]
    kept = model_q(1, named)
    with made_model(arguments) as folder:
        assert folder == kept
    assert (kept / "config.json").is_file()


def test_other_models_lie_in_the_cache(cache: Path) -> None:
    with made_model(argparse.Namespace(kind="model-q", layers=1, folder=None)) as folder:
        assert folder.parent == cache
    assert folder.exists()
