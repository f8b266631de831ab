"""What cannot run is refused before any process starts: the error names the thing, the place and the remedy."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.errors import CheckpointError, ExpertFlowError, UsageError
from expertflow.workers.checkpoint.surveyor import survey_checkpoint
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.families import save_tiny

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    save_tiny("olmoe", root / "single")
    save_tiny("olmoe", root / "sharded", max_shard_size="60KB")
    return root


@pytest.fixture
def single(originals: Path, tmp_path: Path) -> Path:
    """A sound checkpoint in one file, to be broken."""
    return Path(shutil.copytree(originals / "single", tmp_path / "single"))


@pytest.fixture
def sharded(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "sharded", tmp_path / "sharded"))


def refusal(model: str | Path, what: str, where: str | Path = "", kind: type[ExpertFlowError] = CheckpointError) -> str:
    """The text of the error that a survey must raise; `what` and `where` must stand in their fields."""
    with pytest.raises(kind) as caught:
        survey_checkpoint(str(model))
    assert type(caught.value) is kind
    assert what in caught.value.what
    assert str(where) in caught.value.where
    assert caught.value.where
    assert caught.value.remedy
    return str(caught.value)


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def test_the_originals_are_sound(originals: Path):
    """Else everything would be refused."""
    assert survey_checkpoint(str(originals / "single")).experts == 16
    assert len(survey_checkpoint(str(originals / "sharded")).files) > 3


# What the user calls a model


@pytest.mark.parametrize("name", ["", "  "])
def test_no_name(name: str):
    refusal(name, "no model given", "model", UsageError)


def test_a_file(single: Path):
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


def test_no_config(single: Path):
    (single / "config.json").unlink()
    refusal(single, "no config.json", single)


@pytest.mark.parametrize("text", [b"{", b"", b"\xff\xfe{}", b"[1, 2]", b'"olmoe"'])
def test_a_config_that_is_not_a_json_object(single: Path, text: bytes):
    (single / "config.json").write_bytes(text)
    refusal(single, "is not", single / "config.json")


def test_an_unknown_model_type(single: Path):
    edit_config(single, model_type="no_such_model")
    assert "no_such_model" in refusal(single, "transformers cannot read its config.json", single)


def test_a_model_with_code_of_its_own_is_refused_without_asking(single: Path, monkeypatch: pytest.MonkeyPatch):
    """The library would ask on the terminal whether to run it, and wait."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (single / "own.py").write_text("raise SystemExit")
    edit_config(single, model_type="no_such_model", auto_map={"AutoConfig": "own.Config"})
    refusal(single, "transformers cannot read its config.json", single)


@pytest.mark.parametrize("changes", [{"hidden_size": "wide"}, {"model_type": None}, {"num_hidden_layers": None}])
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


@pytest.mark.parametrize("changes", [{"quantization_config": {"quant_method": "mxfp4"}}, {"quantization_config": "mxfp4"}])
def test_a_quantised_model(single: Path, changes: dict[str, Any]):
    edit_config(single, **changes)
    refusal(single, "quantisation 'mxfp4' is not supported", single / "config.json")


def test_a_quantised_model_nested_in_another(single: Path):
    edit_config(single, text_config={"quantization_config": {"quant_method": "fp8"}})
    refusal(single, "quantisation 'fp8'", single / "config.json")


def test_a_dtype_that_cannot_be_computed_in(single: Path):
    edit_config(single, dtype="float8_e4m3fn")
    refusal(single, "float8_e4m3fn", "config.json")


def test_a_garbled_generation_config(single: Path):
    (single / "generation_config.json").write_text("{")
    refusal(single, "cannot be read", single / "generation_config.json")


# Weights


def test_no_weights(single: Path):
    (single / WEIGHTS).unlink()
    refusal(single, "no model.safetensors", single)


def test_a_missing_skeleton_tensor(single: Path):
    edit_tensors(single, lambda tensors: tensors.pop("model.layers.1.self_attn.q_proj.weight"))
    refusal(single, "tensor model.layers.1.self_attn.q_proj.weight is missing", single)


def test_a_missing_tensor_of_one_expert(single: Path):
    name = "model.layers.1.mlp.experts.11.up_proj.weight"
    edit_tensors(single, lambda tensors: tensors.pop(name))
    refusal(single, f"has 15 of 16 experts: {name} is missing", "model.layers.1.mlp.experts.gate_up_proj")


def test_experts_of_a_layer_are_missing(single: Path):
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "layers.2.mlp.experts" in name]:
            del tensors[name]

    edit_tensors(single, drop)
    refusal(single, "tensor model.layers.2.mlp.experts.gate_up_proj is missing", single)


def test_all_gates_of_a_layer_are_missing(single: Path):
    """The up-projections alone must not pass for the whole."""

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "layers.2.mlp.experts" in name and "gate_proj" in name]:
            del tensors[name]

    edit_tensors(single, drop)
    refusal(single, "shape", "layers.2.mlp.experts.gate_up_proj")


def test_more_experts_than_the_configuration_has(single: Path):
    edit_config(single, num_experts=8, num_local_experts=8)
    refusal(single, "8", "model.layers.0.mlp")


def test_experts_of_another_width(single: Path):
    edit_config(single, intermediate_size=64)
    refusal(single, "stored experts have shape [64, 48], the configuration asks for [128, 48]", "gate_up_proj")


def test_a_skeleton_of_another_shape(single: Path):
    edit_config(single, vocab_size=256)
    refusal(single, "is stored with shape [128, 48], the configuration asks for [256, 48]", "model.embed_tokens.weight")


def test_experts_stored_in_a_quantised_type(single: Path):
    """Some checkpoints are quantised and do not say so in config.json."""

    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".experts." in name]:
            tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    edit_tensors(single, quantise)
    refusal(single, "experts are stored as F8_E4M3", "gate_up_proj")


def test_experts_that_differ_within_a_layer(single: Path):
    name = "model.layers.0.mlp.experts.3.up_proj.weight"
    edit_tensors(single, lambda tensors: tensors.update({name: tensors[name].half()}))
    refusal(single, "experts differ in shape or type", "model.layers.0.mlp.experts.gate_up_proj")


def test_experts_stored_differently_between_layers(single: Path):
    """One layer in another type would need other pieces."""

    def halve(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "layers.1.mlp.experts" in name]:
            tensors[name] = tensors[name].half()

    edit_tensors(single, halve)
    refusal(single, "stored differently in different layers", "MoE layer 1")


def test_experts_of_different_sizes(single: Path, monkeypatch: pytest.MonkeyPatch):
    """No supported family has them, so one layer is built with fewer neurons."""
    from transformers.models.olmoe import modeling_olmoe

    built = modeling_olmoe.OlmoeExperts.__init__
    layers = iter(range(9))

    def build(module: Any, config: Any) -> None:
        built(module, config)
        if next(layers) == 1:
            module.down_proj = torch.nn.Parameter(torch.empty(16, 48, 31))

    monkeypatch.setattr(modeling_olmoe.OlmoeExperts, "__init__", build)
    refusal(single, "experts differ between layers", "model.layers.1.mlp.experts")


# Files


@pytest.mark.parametrize("left", [0, 1, 7, 8, 100, -1, -5000])
def test_a_truncated_file(single: Path, left: int):
    """Cut anywhere: within the header's length, the header, or the data."""
    size = (single / WEIGHTS).stat().st_size
    os.truncate(single / WEIGHTS, left % size)
    refusal(single, "cut off", single / WEIGHTS)


@pytest.mark.parametrize("length", [0, 3, 2**63, 2**64 - 1, 10**9])
def test_an_absurd_header_length(single: Path, length: int):
    with (single / WEIGHTS).open("r+b") as file:
        file.write(length.to_bytes(8, "little"))
    refusal(single, "header", single / WEIGHTS)


def with_header(folder: Path, header: bytes) -> None:
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xff\xff",
        b"[]",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [1]}}',
        b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}',
    ],
)
def test_a_garbled_header(single: Path, header: bytes):
    with_header(single, header)
    refusal(single, "garbled header", single / WEIGHTS)


@pytest.mark.parametrize(
    ("shape", "offsets"), [([2], [0, 4]), ([1], [4, 0]), ([1], [-4, 0]), ([1], [62, 66]), ([-1], [0, 4])]
)
def test_a_header_that_contradicts_itself(single: Path, shape: list[int], offsets: list[int]):
    with_header(single, json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode())
    refusal(single, "tensor a", single / WEIGHTS)


def test_a_missing_shard(sharded: Path):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    refusal(sharded, f"names the shard {shard.name}, which is missing", sharded / INDEX)


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {"a": 1}}'])
def test_an_index_that_cannot_be_read(sharded: Path, text: bytes):
    (sharded / INDEX).write_bytes(text)
    refusal(sharded, "not a readable index", sharded / INDEX)


def test_an_index_that_names_nothing(sharded: Path):
    (sharded / INDEX).write_bytes(b'{"weight_map": {}}')
    refusal(sharded, "is missing", sharded)


def test_a_truncated_shard(sharded: Path):
    shard = sorted(sharded.glob("*.safetensors"))[-1]
    os.truncate(shard, shard.stat().st_size - 1)
    refusal(sharded, "cut off", shard)


# Permissions


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


@contextmanager
def no_override() -> Iterator[None]:
    """Root reads what it may not: take that power from this thread for a while. Nothing happens for other users."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = _CapabilityHeader(0x20080522, 0)
    kept, less = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    libc.capget(ctypes.byref(header), kept)
    libc.capget(ctypes.byref(header), less)
    less[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, effective
    libc.capset(ctypes.byref(header), less)
    try:
        yield
    finally:
        libc.capset(ctypes.byref(header), kept)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "."])
def test_unreadable_files(single: Path, name: str):
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
