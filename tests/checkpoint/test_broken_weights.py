"""Weights that are missing, cut off, garbled or of another model are refused from their headers alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.errors import CheckpointError
from expertflow.tests.checkpoint.broken import INDEX, WEIGHTS, edit_config, edit_tensors, refusal
from expertflow.tests.surveyor.skeletons import NO_FEED
from expertflow.workers.checkpoint.headers import read_headers
from expertflow.workers.compute.experts.routing import RoutingCollector
from expertflow.workers.compute.skeleton import load_model
from expertflow.workers.surveyor.surveyor import survey_folder
from hypothesis import given, settings
from hypothesis import strategies as st

DEEP = b'{"weight_map": ' + b"[" * 100_000
"""More than any parser's stack holds."""


# Tensors


def test_a_folder_without_weights_is_refused(single: Path):
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
def test_a_file_that_is_cut_off_is_refused(single: Path, left: int):
    """Cut anywhere: within the header's length, the header, or the data."""
    size = (single / WEIGHTS).stat().st_size
    os.truncate(single / WEIGHTS, left % size)
    refusal(single, "cut off", single / WEIGHTS)


@pytest.mark.parametrize("length", [0, 3, 2**63, 2**64 - 1, 10**9])
def test_an_absurd_header_length(single: Path, length: int):
    with (single / WEIGHTS).open("r+b") as file:
        file.write(length.to_bytes(8, "little"))
    refusal(single, "header", single / WEIGHTS)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / WEIGHTS


def with_header(folder: Path, header: bytes) -> None:
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xff\xff",
        b"[]",
        DEEP,
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [1]}}',
        b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}',
    ],
)
def test_a_header_that_is_garbled_is_refused(single: Path, header: bytes):
    with_header(single, header)
    refusal(single, "garbled header", single / WEIGHTS)


@pytest.mark.parametrize(
    ("shape", "offsets"), [([2], [0, 4]), ([1], [4, 0]), ([1], [-4, 0]), ([1], [62, 66]), ([-1], [0, 4])]
)
def test_a_header_that_contradicts_itself(single: Path, shape: list[int], offsets: list[int]):
    with_header(single, json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode())
    refusal(single, "tensor a", single / WEIGHTS)


@given(st.lists(st.tuples(st.integers(0, 2**12), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 2**14))
@settings(deadline=None, max_examples=300)
def test_any_damage_to_a_header_is_a_typed_error_or_harmless(
    originals: Path, scratch: Path, damage: list[tuple[int, int]], cut: int
):
    """No other exception leaves the reader, and no tensor reaches beyond its file."""
    data = bytearray((originals / "single" / WEIGHTS).read_bytes())
    for at, value in damage:
        data[at] = value
    scratch.write_bytes(data[: len(data) - cut * (cut % 2)])
    try:
        tensors = read_headers([scratch])
    except CheckpointError as error:
        assert error.where == str(scratch)
    else:
        assert all(
            0 <= each.offset_bytes <= each.offset_bytes + each.count_bytes <= len(data) for each in tensors.values()
        )


def test_a_shard_that_is_missing_is_named(sharded: Path):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    refusal(sharded, f"names the shard {shard.name}, which is missing", sharded / INDEX)


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {"a": 1}}', DEEP])
def test_an_index_that_cannot_be_read(sharded: Path, text: bytes):
    (sharded / INDEX).write_bytes(text)
    refusal(sharded, "not a readable index", sharded / INDEX)


def test_an_index_that_names_nothing(sharded: Path):
    (sharded / INDEX).write_bytes(b'{"weight_map": {}}')
    refusal(sharded, "is missing", sharded)


def test_a_shard_that_is_cut_off_is_refused(sharded: Path):
    shard = sorted(sharded.glob("*.safetensors"))[-1]
    os.truncate(shard, shard.stat().st_size - 1)
    refusal(sharded, "cut off", shard)


@pytest.mark.parametrize("left", [None, 20])
def test_a_file_that_is_gone_after_the_survey(single: Path, left: int | None):
    """The stages start seconds later; compute then reads the skeleton."""
    survey = survey_folder(single)
    for file in single.glob("*.safetensors"):
        file.write_bytes(b"x" * left) if left else file.unlink()
    words = f"was cut off: it has {left} bytes" if left else "is gone since it was surveyed"
    with pytest.raises(CheckpointError, match=words) as refused:
        load_model(survey, NO_FEED, RoutingCollector(None, survey.layers))
    assert refused.value.where == str(single / "model.safetensors")


@pytest.mark.parametrize(
    "shape",
    [[-2, -8], [2**62] * 200, [1] * 33, [2**49, 0], [1] * 1_000_000],
    ids=["minus", "huge", "many", "far", "long"],
)
@pytest.mark.parametrize("dtype", ["F32", "unknown"])
def test_a_shape_that_no_tensor_has_is_refused_at_once(single: Path, shape: list[int], dtype: str):
    """The product of a million numbers takes minutes; two negative numbers make a positive one."""
    with_header(single, json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, 64]}}).encode())
    refusal(single, "tensor a has a shape that no tensor has", single / WEIGHTS)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 65])
def test_a_header_longer_than_the_file_or_the_limit_is_not_read(single: Path, length: int):
    (single / WEIGHTS).write_bytes(length.to_bytes(8, "little") + b"x" * 64)
    refusal(single, "cut off in its header", single / WEIGHTS)


def test_a_sparse_file_does_not_make_a_long_header_readable(single: Path):
    """A terabyte of nothing costs an attacker nothing, and must cost us nothing."""
    (single / WEIGHTS).write_bytes((2**39).to_bytes(8, "little"))
    os.truncate(single / WEIGHTS, 2**40)
    refusal(single, "is not a safetensors file", single / WEIGHTS)


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.safetensors", "a/../../b.safetensors", "a\0b"])
def test_an_index_leads_to_no_file_elsewhere(sharded: Path, name: str):
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    refusal(sharded, "which is no file of its folder", sharded / INDEX)


@pytest.mark.parametrize("name", [INDEX, "config.json"])
def test_files_of_json_are_bounded(sharded: Path, name: str):
    os.truncate(sharded / name, 2**34)
    refusal(sharded, "is larger than", sharded / name)
