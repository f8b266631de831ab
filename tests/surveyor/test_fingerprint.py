"""A fingerprint tells models apart, and does not tell a widened copy from its source."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from expertflow.tests.models.families import save_tiny
from expertflow.workers.checkpoint.headers import StoredTensor
from expertflow.workers.checkpoint.widen import widen
from expertflow.workers.surveyor.fingerprint import MAX_TENSOR_BYTES, fingerprint
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("olmoe")
    save_tiny("olmoe", made)
    return made


def fingerprint_of(folder: Path, dtype: str = "auto") -> str:
    return survey_checkpoint(str(folder), dtype=dtype).fingerprint


def changed(folder: Path, copy: Path, name: str) -> Path:
    """A copy whose tensor `name` has another first value."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    weights[name].flatten()[0] += 1
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


def test_it_is_32_hexadecimal_digits_whatever_is_computed_in(folder: Path) -> None:
    assert re.fullmatch("[0-9a-f]{32}", fingerprint_of(folder))
    assert fingerprint_of(folder, "float32") == fingerprint_of(folder, "bfloat16")


def test_a_widened_copy_has_the_same(folder: Path, tmp_path: Path) -> None:
    widen(folder, tmp_path / "wide", 4)
    assert fingerprint_of(tmp_path / "wide") == fingerprint_of(folder)


def test_a_copy_in_shards_has_the_same(folder: Path, tmp_path: Path) -> None:
    """Where a tensor lies is not part of what it is."""
    save_tiny("olmoe", tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert fingerprint_of(tmp_path) == fingerprint_of(folder)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.gate.weight", "model.norm.weight"])
def test_another_router_or_norm_is_another_model(folder: Path, tmp_path: Path, name: str) -> None:
    assert fingerprint_of(changed(folder, tmp_path / "copy", name)) != fingerprint_of(folder)


def test_other_experts_are_the_same_model(folder: Path, tmp_path: Path) -> None:
    name = next(name for name in load_file(folder / "model.safetensors") if ".experts.3.up_proj" in name)
    assert fingerprint_of(changed(folder, tmp_path / "copy", name)) == fingerprint_of(folder)


def test_another_top_k_is_another_model(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_experts_per_tok": 2}))
    assert fingerprint_of(copy) != fingerprint_of(folder)


def test_big_tensors_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(8))
    small = StoredTensor("norm", 0, "float32", [2], 0, 8)
    big = StoredTensor("embedding", 0, "float32", [MAX_TENSOR_BYTES], 0, 4 * MAX_TENSOR_BYTES)
    assert fingerprint([big, small], set(), [file], (1,)) == fingerprint([small], set(), [file], (1,))


def test_equal_names_with_other_bytes_differ(tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    torch.zeros(2).numpy().tofile(files[0])
    torch.ones(2).numpy().tofile(files[1])
    one, two = (fingerprint([StoredTensor("gate", n, "float32", [2], 0, 8)], set(), files, ()) for n in (0, 1))
    assert one != two
