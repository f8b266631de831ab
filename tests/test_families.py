"""The tiny models must be worth testing with: sensitive to their experts, and saved as hub checkpoints are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from expertflow.tests.models.families import FAMILIES, save_tiny, tiny_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

PER_EXPERT = {
    "mixtral": r"model\.layers\.1\.block_sparse_moe\.experts\.0\.w1\.weight",
    "gpt_oss": r"model\.layers\.1\.mlp\.experts\.gate_up_proj",
    "llama4_text": r"model\.layers\.1\.feed_forward\.experts\.gate_up_proj",
    "dbrx": r"transformer\.blocks\.1\.ffn\.experts\.mlp\.w1",
    "jetmoe": r"model\.layers\.1\.mlp\.input_linear\.weight",
}


def next_tokens(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.randint(3, 128, (8, 12), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(ids).logits.argmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_exchanged_experts_change_tokens_of_every_prompt(family: str) -> None:
    """With the library's default initialisation they hardly do, and no test would notice a wrong expert."""
    model = tiny_model(family)
    before = next_tokens(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                parameter.copy_(parameter.roll(1, dims=0))
    assert (next_tokens(model) != before).any(dim=1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_model_is_read_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    model = save_tiny(family, tmp_path, seed=3, max_shard_size="100KB")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    for (name, own), (_, other) in zip(model.state_dict().items(), read.state_dict().items(), strict=True):
        assert torch.equal(own, other), name


@pytest.mark.parametrize("family", FAMILIES)
def test_names_in_the_files_are_those_of_the_hub(family: str, tmp_path: Path) -> None:
    """Readers must learn names from checkpoints as they are published, not as transformers holds them."""
    save_tiny(family, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = list(file.keys())
    pattern = PER_EXPERT.get(family, r"model\.layers\.1\.mlp\.experts\.0\.gate_proj\.weight")
    assert any(re.fullmatch(pattern, name) for name in names)


def test_same_seed_gives_the_same_model_and_leaves_the_global_state() -> None:
    before = torch.random.get_rng_state()
    one, two, other = tiny_model("olmoe", 1), tiny_model("olmoe", 1), tiny_model("olmoe", 2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.state_dict()["lm_head.weight"], two.state_dict()["lm_head.weight"])
    assert not torch.equal(one.state_dict()["lm_head.weight"], other.state_dict()["lm_head.weight"])
