"""What cannot run is refused before any process starts: the error names the thing, the place and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from expertflow.errors import UsageError
from expertflow.tests.checkpoint.broken import INDEX, WEIGHTS, edit_config, no_override, refusal
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from transformers import LlamaConfig, LlamaForCausalLM


def test_the_originals_are_sound(originals: Path):
    """Else everything would be refused."""
    assert survey_checkpoint(str(originals / "single")).experts == 16
    assert len(survey_checkpoint(str(originals / "sharded")).files) > 3


# What the user calls a model


@pytest.mark.parametrize("name", ["", "  "])
def test_a_model_without_a_name_is_refused(name: str):
    refusal(name, "no model given", "model", UsageError)


def test_a_file_in_place_of_its_folder_is_refused(single: Path):
    text = refusal(single / WEIGHTS, "is a file", single / WEIGHTS, UsageError)
    assert f"Give its folder: {single}" in text


@pytest.mark.parametrize("name", ["no-such-thing", "./a/b", "/nowhere/model", "a/b/c", "~/nowhere", "nul\0byte"])
def test_neither_a_folder_nor_a_hub_id(name: str):
    refusal(name, "no such folder", name, UsageError)


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/model"])
def test_a_name_that_cannot_be_a_path(name: str):
    """The operating system's own complaints (name too long, no such user) are not shown raw."""
    refusal(name, "cannot be looked up", name, UsageError)


# config.json


def test_a_folder_without_config_json_is_refused(single: Path):
    (single / "config.json").unlink()
    refusal(single, "no config.json", single)


@pytest.mark.parametrize("text", [b"{", b"", b"\xff\xfe{}", b"[1, 2]", b'"olmoe"', b"[" * 100_000])
def test_a_config_that_is_not_a_json_object(single: Path, text: bytes):
    (single / "config.json").write_bytes(text)
    refusal(single, "is not", single / "config.json")


def test_an_unknown_model_type(single: Path):
    edit_config(single, model_type="no_such_model", architectures=["NoSuchForCausalLM"])
    assert "no_such_model" in refusal(single, "transformers cannot read its config.json", single)


def test_a_model_with_code_of_its_own_is_refused_without_asking(single: Path, monkeypatch: pytest.MonkeyPatch):
    """The library would ask on the terminal whether to run it, and wait."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (single / "own.py").write_text("raise SystemExit")
    own = {"model_type": "no_such_model", "architectures": ["OwnForCausalLM"]}
    edit_config(single, **own, auto_map={"AutoConfig": "own.Config"})
    refusal(single, "transformers cannot read its config.json", single)


@pytest.mark.parametrize(
    "changes", [{"hidden_size": "wide"}, {"model_type": None, "architectures": None}, {"num_hidden_layers": None}]
)
def test_a_config_with_nonsense_in_it(single: Path, changes: dict[str, Any]):
    edit_config(single, **changes)
    refusal(single, "transformers cannot read its config.json", single)


def test_a_model_that_is_no_language_model(single: Path):
    edit_config(single, model_type="vit")
    refusal(single, "'vit' is not a causal language model", "config.json")


def test_a_model_without_routed_experts(tmp_path: Path):
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    refusal(tmp_path, "'llama' has no routed experts", tmp_path)


QUANTISED: dict[str, object] = {
    "gptq": {"quant_method": "gptq", "bits": 3},
    "awq": {"quant_method": "awq", "bits": 4, "version": "gemv"},
    "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "float-quantized"},
    "nvfp4": {"quant_method": "nvfp4"},
    "unknown": {"bits": 3},
    "mxfp4": "mxfp4",
}


@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_in_a_way_that_is_not_read(single: Path, method: str):
    edit_config(single, quantization_config=QUANTISED[method])
    text = refusal(single, f"quantisation '{method}' is not supported", single / "config.json")
    assert "bf16" in text and "FP8" in text


@pytest.mark.parametrize("place", ["text_config", "compression_config"])
def test_a_quantised_model_that_says_so_elsewhere(single: Path, place: str):
    stated: dict[str, Any] = {"quant_method": "compressed-tensors"}
    edit_config(single, **{place: {"quantization_config": stated} if place == "text_config" else stated})
    refusal(single, "quantisation 'compressed-tensors'", single / "config.json")


GROUP: dict[str, Any] = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}
COMPRESSED: dict[str, tuple[dict[str, Any], str]] = {
    "activations": ({"config_groups": {"a": {"targets": ["Linear"], "weights": None}}}, "activations alone"),
    "bits": ({"config_groups": {"a": GROUP | {"weights": {"num_bits": 3}}}}, "weights of 3 bits"),
    "format": ({"config_groups": {"a": GROUP}, "format": "marlin-24"}, "format marlin-24"),
    "sparse": ({"config_groups": {"a": GROUP}, "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
    "transformed": ({"config_groups": {"a": GROUP}, "transform_config": {"config_groups": {"r": 1}}}, "transformed"),
}


@pytest.mark.parametrize("case", COMPRESSED)
def test_schemes_of_compressed_tensors_that_are_not_read(single: Path, case: str):
    stated, words = COMPRESSED[case]
    edit_config(single, quantization_config={"quant_method": "compressed-tensors", **stated})
    assert words in refusal(single, "quantisation 'compressed-tensors' is not supported", single / "config.json")


def test_quantised_embeddings(single: Path):
    """The library would keep them quantised, and a budget would not count them right."""
    edit_config(single, quantization_config={"quant_method": "fp8", "modules_to_convert": ["embed_tokens"]})
    refusal(single, "quantised embeddings", single / "config.json")


@pytest.mark.parametrize("changes", [{"weight_block_size": [128]}, {"activation_scheme": "odd"}, {"scale_fmt": 3}])
def test_nonsense_in_a_quantisation(single: Path, changes: dict[str, Any]):
    edit_config(single, quantization_config={"quant_method": "fp8"} | changes)
    refusal(single, "quantization_config cannot be read", "config.json")


def test_a_dtype_that_cannot_be_computed_in(single: Path):
    edit_config(single, dtype="float8_e4m3fn")
    refusal(single, "float8_e4m3fn", "config.json")


def test_a_garbled_generation_config(single: Path):
    (single / "generation_config.json").write_text("{")
    refusal(single, "cannot be read", single / "generation_config.json")


# Permissions


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "."])
def test_files_that_may_not_be_read_are_named(single: Path, name: str):
    """A folder that may not be entered, too."""
    secret = single / name
    mode = secret.stat().st_mode
    secret.chmod(0)
    try:
        with no_override():
            assert "Permission denied" in refusal(single, "", secret)
    finally:
        secret.chmod(mode)


def test_an_unreadable_index(sharded: Path):
    (sharded / INDEX).chmod(0)
    with no_override():
        assert "Permission denied" in refusal(sharded, "cannot be read", sharded / INDEX)
