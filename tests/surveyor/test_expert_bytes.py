"""The bytes that arrive in slots are `from_pretrained`'s experts, bit for bit, however the checkpoint stores them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.tests.loader.arenas import CANARY, all_experts, assert_experts_equal, fill, make_arena, payload
from expertflow.tests.models.families import FAMILIES, save_tiny, tiny_model
from expertflow.workers.checkpoint.headers import checkpoint_files, read_headers
from expertflow.workers.checkpoint.layout import ReadPlan
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

SMALL_SHARD = "7KB"
LARGE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_experts": 4}
"""Experts of 768 KiB in float32: big enough for direct reads."""

Saver = Callable[[str, str], Path]
STORED = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saver:
    root = tmp_path_factory.mktemp("checkpoints")

    @cache
    def save(family: str, how: str) -> Path:
        """how: plain, sharded, fused (the library's own layout), or what the weights are stored in."""
        folder = root / f"{family}-{how}"
        if how == "fused":
            tiny_model(family).save_pretrained(folder, save_original_format=False)
        else:
            size = SMALL_SHARD if how == "sharded" else "50GB"
            save_tiny(family, folder, dtype=STORED.get(how, torch.float32), max_shard_size=size)
        return folder

    return save


def check_all_experts(folder: Path, dtype: str) -> Survey:
    survey = survey_checkpoint(str(folder), dtype=dtype)
    memory = make_arena(survey.expert_count * survey.stride_bytes)
    experts = all_experts(survey)
    transfers = fill(survey, experts, memory)
    assert not [transfer.error for transfer in transfers if transfer.error]
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, survey.dtype)).state_dict()
    assert_experts_equal(survey, experts, memory, reference)
    return survey


@pytest.mark.parametrize("how", ["plain", "sharded", "fused"])
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_equal_from_pretrained(saved: Saver, family: str, how: str):
    survey = check_all_experts(saved(family, how), "auto")
    assert {piece.operation for piece in survey.pieces} == {"copy"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sharded_checkpoints_have_experts_that_straddle_files(saved: Saver, family: str):
    """Else the test above would not show that they are assembled; of per-expert tensors, gate and up of one expert."""
    survey = survey_checkpoint(str(saved(family, "sharded")))
    first_tensor = [number for number, piece in enumerate(survey.pieces) if piece.tensor == 0]
    pieces = first_tensor if len(first_tensor) > 1 else list(range(len(survey.pieces)))
    files = survey.place_table()[:, :, pieces, 0]
    assert (files.min(axis=2) < files.max(axis=2)).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fused_checkpoints_are_fused(saved: Saver, family: str):
    names = read_headers(checkpoint_files(saved(family, "fused")))
    fused = {"dbrx": "experts.mlp.w1", "jetmoe": "mlp.input_linear.weight"}.get(family, "experts.gate_up_proj")
    assert any(name.endswith(fused) for name in names)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [("f32", "bfloat16"), ("f32", "float16"), ("bf16", "float32"), ("f16", "bfloat16"), ("f16", "float32")],
)
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_are_cast_as_the_library_casts_them(saved: Saver, family: str, stored: str, wanted: str):
    survey = check_all_experts(saved(family, stored), wanted)
    assert {piece.operation for piece in survey.pieces} == {"cast"}


@pytest.mark.parametrize("stored", ["f32", "bf16", "f16"])
def test_stored_in_the_wanted_type_experts_are_copied(saved: Saver, stored: str):
    survey = check_all_experts(saved("mixtral", stored), "auto")
    assert survey.dtype == str(STORED[stored]).removeprefix("torch.")


def test_float64_checkpoints_are_cast(tmp_path: Path):
    save_tiny("olmoe", tmp_path, dtype=torch.float64)
    survey = check_all_experts(tmp_path, "float32")
    assert survey.pieces[0].source_dtype == "float64"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    save_tiny("olmoe", folder, **LARGE)
    return folder


def move_data(folder: Path, target: Path, header_bytes: int) -> None:
    """A copy of a one-file checkpoint whose data begin at another offset."""
    target.mkdir()
    metadata = {"format": "pt", "padding": "x" * header_bytes}
    save_file(load_file(folder / "model.safetensors"), target / "model.safetensors", metadata)
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())


@pytest.mark.parametrize("header_bytes", [0, 8, 504, 1000, 2600, 4088])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_experts_are_read_directly_wherever_they_lie(large: Path, tmp_path: Path, header_bytes: int, dtype: str):
    """Offsets in files are multiples of eight, not of a block: each tensor lies in its slot where the file has it."""
    move_data(large, tmp_path / "moved", header_bytes)
    survey = check_all_experts(tmp_path / "moved", dtype)
    assert survey.block_bytes == 4096
    assert survey.stride_bytes % 4096 == 0


def test_some_of_those_offsets_are_not_aligned(large: Path, tmp_path: Path):
    """Else the test above would say nothing about misalignment."""
    offsets: set[int] = set()
    for header_bytes in (0, 8, 504, 1000, 2600, 4088):
        move_data(large, tmp_path / str(header_bytes), header_bytes)
        survey = survey_checkpoint(str(tmp_path / str(header_bytes)))
        offsets |= {int(offset) % 4096 for offset in survey.place_table()[:, :, 0, 1].flat}
    assert len(offsets) >= 5
    assert any(offset % 512 for offset in offsets)


def test_large_experts_that_straddle_shards(tmp_path: Path):
    """Gate lands directly, up comes through the bounce buffer to the byte behind it."""
    save_tiny("olmoe", tmp_path, max_shard_size="600KB", **LARGE)
    survey = check_all_experts(tmp_path, "auto")
    files = survey.place_table()[:, :, :2, 0]
    assert (files[:, :, 0] != files[:, :, 1]).any()
    assert any(len(ReadPlan(survey).runs(0, expert)) == 3 for expert in range(survey.experts))


def test_large_experts_behind_links(large: Path, tmp_path: Path):
    """The hub's cache holds links to files that are named by their digests, in another folder."""
    for file in large.iterdir():
        (tmp_path / file.name).symlink_to(os.path.relpath(file, tmp_path))
    check_all_experts(tmp_path, "auto")


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_transfer_stays_in_its_slot(saved: Saver, large: Path, size: str):
    """Every other slot is filled: the neighbours of each keep every byte, also those of their guards and gaps."""
    survey = survey_checkpoint(str(large if size == "large" else saved("olmoe", "plain")))
    memory = make_arena(survey.expert_count * survey.stride_bytes)
    odd = {slot: key for slot, key in all_experts(survey).items() if slot % 2}
    fill(survey, odd, memory)
    slots = memory.reshape(survey.expert_count, survey.stride_bytes)
    assert (slots[0::2] == CANARY).all()
    for slot, (layer, expert) in odd.items():
        assert all((slots[slot, each] != CANARY).any() for each in payload(survey, layer, expert))


def test_small_experts_touch_nothing_but_their_slot(tmp_path: Path):
    """Slots of small experts have no guards: where offsets in file and memory agree modulo a block by chance, a read
    that lands whole blocks would write the file's bytes before the expert over the slot before it.
    """
    save_tiny("olmoe", tmp_path / "plain")
    before = survey_checkpoint(str(tmp_path / "plain"))
    first = int(before.place_table()[0, 0, 0, 1])
    base = before.stride_bytes
    move_data(tmp_path / "plain", tmp_path / "moved", (base - first - len(',"padding":""')) % 4096 // 8 * 8)
    survey = survey_checkpoint(str(tmp_path / "moved"))
    assert int(survey.place_table()[0, 0, 0, 1]) % 4096 == base % 4096 != 0
    memory = make_arena(2 * survey.stride_bytes)
    fill(survey, {1: (0, 0)}, memory)
    assert (memory[: survey.stride_bytes] == CANARY).all()
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "moved").state_dict()
    assert_experts_equal(survey, {1: (0, 0)}, memory, reference)
