"""Scales that are missing or do not fit: refused before anything is loaded, by the name of the tensor."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from expertflow.tests.checkpoint.broken import edit_tensors, refusal
from expertflow.tests.models.published import Tensors, save_block_fp8, save_mxfp4

ATTENTION = "model.layers.1.self_attn.q_proj.weight"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"
FUSED = "model.layers.1.mlp.experts.gate_up_proj"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    save_block_fp8("qwen3_moe", root / "fp8")
    save_mxfp4(root / "mxfp4")
    return root


def broken(sound: Path, folder: Path, change: Callable[[Tensors], object]) -> Path:
    shutil.copytree(sound, folder, dirs_exist_ok=True)
    edit_tensors(folder, change)
    return folder


@pytest.mark.parametrize("name", [ATTENTION, EXPERT])
def test_a_scale_that_is_missing(sound: Path, tmp_path: Path, name: str):
    folder = broken(sound / "fp8", tmp_path, lambda tensors: tensors.pop(f"{name}_scale_inv"))
    what = "without scales" if name == ATTENTION else "has 11 of 12 experts"
    refusal(folder, what, ".layers.1.")


@pytest.mark.parametrize("name", [ATTENTION, EXPERT])
def test_a_weight_that_is_missing(sound: Path, tmp_path: Path, name: str):
    folder = broken(sound / "fp8", tmp_path, lambda tensors: tensors.pop(name))
    refusal(folder, "no weights" if name == ATTENTION else "has 11 of 12 experts", ".layers.1.")


def test_fp8_experts_without_scales_are_refused(sound: Path, tmp_path: Path):
    def drop(tensors: Tensors) -> None:
        for name in [name for name in tensors if "experts" in name and name.endswith("_scale_inv")]:
            del tensors[name]

    refusal(broken(sound / "fp8", tmp_path, drop), "F8_E4M3 without scales", "gate_up_proj")


@pytest.mark.parametrize("name", [ATTENTION, EXPERT])
def test_scales_that_do_not_fit(sound: Path, tmp_path: Path, name: str):
    def change(tensors: Tensors) -> None:
        for each in [each for each in tensors if each.startswith(name.partition("3.up")[0]) and "scale" in each]:
            tensors[each] = torch.ones(5, 7)

    refusal(broken(sound / "fp8", tmp_path, change), "do not divide", ".layers.1.")


def test_scales_of_a_type_that_says_nothing(sound: Path, tmp_path: Path):
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if "experts" in name and name.endswith("_scale_inv")]:
            tensors[name] = tensors[name].to(torch.int32)

    refusal(broken(sound / "fp8", tmp_path, change), "with scales in I32", "gate_up_proj")


@pytest.mark.parametrize("kind", ["blocks", "scales"])
def test_half_of_an_mxfp4_pair(sound: Path, tmp_path: Path, kind: str):
    folder = broken(sound / "mxfp4", tmp_path, lambda tensors: tensors.pop(f"{FUSED}_{kind}"))
    refusal(folder, "no weights" if kind == "blocks" else "without scales", "gate_up_proj")


def test_exponents_of_another_shape(sound: Path, tmp_path: Path):
    def change(tensors: Tensors) -> None:
        tensors[f"{FUSED}_scales"] = tensors[f"{FUSED}_scales"][:, :-1].contiguous()

    refusal(broken(sound / "mxfp4", tmp_path, change), "do not divide", FUSED)


def test_blocks_that_are_no_blocks(sound: Path, tmp_path: Path):
    def change(tensors: Tensors) -> None:
        tensors[f"{FUSED}_blocks"] = tensors[f"{FUSED}_blocks"].flatten(1).contiguous()

    refusal(broken(sound / "mxfp4", tmp_path, change), "", FUSED)


def test_scales_that_are_no_grid(sound: Path, tmp_path: Path):
    """One for each row is neither a block's nor the whole matrix's."""

    def change(tensors: Tensors) -> None:
        for each in [each for each in tensors if each.startswith(EXPERT.partition("3.up")[0]) and "scale" in each]:
            tensors[each] = torch.ones(16)

    refusal(broken(sound / "fp8", tmp_path, change), "neither a grid nor one", "gate_up_proj")
