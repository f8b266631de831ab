"""What is not a whole model is named for what it is, with what to do: adapters, wrappers' prefixes, a missing head."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from expertflow.errors import UsageError
from expertflow.tests.checkpoint.broken import INDEX, WEIGHTS, edit_config, edit_tensors, refusal
from expertflow.workers.checkpoint.partial_models import wrapper_prefix
from expertflow.workers.surveyor.strip_prefix import strip_prefix
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from safetensors.torch import load_file, save_file

LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def add_adapter(folder: Path) -> None:
    stated = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps(stated))
    save_file({LORA: torch.ones(4, 48)}, folder / "adapter_model.safetensors")


def test_an_adapter_alone_is_no_model(tmp_path: Path):
    add_adapter(tmp_path)
    text = refusal(tmp_path, 'is an adapter ("LORA") of "some/base", not a whole model', tmp_path)
    assert "merge_and_unload" in text


def test_an_adapter_with_the_configuration_of_its_base(single: Path):
    (single / WEIGHTS).unlink()
    add_adapter(single)
    refusal(single, "is an adapter", single)


def test_an_adapter_beside_whole_weights(single: Path):
    """Without it the model would give another text than its folder promises."""
    add_adapter(single)
    assert "take adapter_config.json and its weights away" in refusal(single, "is an adapter", single)


def test_what_a_merge_left_over_is_ignored(single: Path):
    add_adapter(single)
    (single / "adapter_model.safetensors").unlink()
    assert survey_checkpoint(str(single)).experts == 16


@pytest.mark.parametrize("content", ["{", "[]", '{"peft_type": null}'])
def test_a_garbled_adapter_config(tmp_path: Path, content: str):
    (tmp_path / "adapter_config.json").write_text(content)
    refusal(tmp_path, "is an adapter", tmp_path)


@pytest.mark.parametrize("name", ["self_attn.q_proj.lora_A.weight", "self_attn.q_proj.lora_B.default.weight"])
def test_lora_tensors_left_inside(single: Path, name: str):
    """All tensors of the model are there; without these two, it would run as if it had never been tuned."""
    whole = f"model.layers.1.{name}"
    edit_tensors(single, lambda tensors: tensors.update({whole: torch.ones(4, 48)}))
    assert "merge_and_unload" in refusal(single, f"an adapter that was never merged ({whole})", single)


def test_weights_under_an_adapter_s_names(single: Path):
    name = "model.layers.1.self_attn.q_proj.weight"
    edit_tensors(single, lambda each: each.update({name.replace("weight", "base_layer.weight"): each.pop(name)}))
    refusal(single, "an adapter that was never merged", single)


# Prefixes


def put_before(folder: Path, prefix: str) -> None:
    for file in folder.glob("*.safetensors"):
        save_file({prefix + name: tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"] = {prefix + name: shard for name, shard in index["weight_map"].items()}
        (folder / INDEX).write_text(json.dumps(index))


PREFIXES = ["module.", "_orig_mod.", "base_model.model.", "_forward_module._orig_mod.", "any.thing."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_wrapper_s_prefix_is_named(single: Path, prefix: str):
    put_before(single, prefix)
    text = refusal(single, f"has '{prefix}' before the name of every tensor", single)
    assert f"expertflow.workers.surveyor.strip_prefix {single}" in text


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_a_prefix_is_taken_away_and_nothing_else_changes(originals: Path, tmp_path: Path, kind: str):
    folder = tmp_path / kind
    shutil.copytree(originals / kind, folder)
    put_before(folder, "module.")
    files = sorted(folder.glob("*.safetensors"))
    sizes = [file.stat().st_size for file in files]
    assert strip_prefix(folder) == "module."
    assert [file.stat().st_size for file in files] == sizes
    for file in files:
        stored, original = load_file(file), load_file(originals / kind / file.name)
        assert stored.keys() == original.keys()
        assert all(torch.equal(stored[name], original[name]) for name in original)
    assert survey_checkpoint(str(folder)).fingerprint == survey_checkpoint(str(originals / kind)).fingerprint


def test_nothing_to_take_away(single: Path):
    before = (single / WEIGHTS).read_bytes()
    with pytest.raises(UsageError, match="has no prefix"):
        strip_prefix(single)
    assert (single / WEIGHTS).read_bytes() == before


def test_files_of_a_cache_stay(single: Path):
    blob = single / "blob"
    put_before(single, "module.")
    (single / WEIGHTS).rename(blob)
    (single / WEIGHTS).symlink_to(blob)
    with pytest.raises(UsageError, match="a link into a cache"):
        strip_prefix(single)


@pytest.mark.parametrize(
    ("stored", "prefix"),
    [
        (["module.a.w", "module.b.w"], "module."),
        (["a.w", "b.w"], ""),
        (["module.a.w", "b.w"], ""),
        (["x.y", "z"], ""),
        ([], ""),
    ],
)
def test_a_prefix_is_one_of_all_names(stored: list[str], prefix: str):
    assert wrapper_prefix(stored, ["a.w", "b.w"]) == prefix


# Heads


def test_a_model_without_its_head_is_refused_with_the_cause(single: Path):
    edit_tensors(single, lambda tensors: tensors.pop("lm_head.weight"))
    text = refusal(single, "tensor lm_head.weight, the head of the model, is missing", single)
    assert "tie_word_embeddings" in text and "AutoModelForCausalLM" in text


def test_a_head_of_another_kind(single: Path):
    edit_config(single, architectures=["OlmoeForSequenceClassification"])
    edit_tensors(single, lambda each: each.update({"score.weight": each.pop("lm_head.weight")[:2].clone()}))
    refusal(single, "OlmoeForSequenceClassification has another head than a language model", single)
