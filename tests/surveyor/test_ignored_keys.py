"""Tensors that the model does not have are left where they are; tensors that it may lack are not asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from expertflow.benchmarks.limits import drop_from_page_cache
from expertflow.tests.loader.page_cache import cached_pages
from expertflow.tests.models.families import save_tiny
from expertflow.tests.surveyor.skeletons import assert_skeleton_equal, load_both
from expertflow.tests.surveyor.sparse import write_holes
from expertflow.tests.surveyor.test_conversions import check_against_library
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from safetensors.torch import load_file, save_file
from transformers import OlmoeForCausalLM

MEBIBYTE = 2**20
EXTRA_LAYERS = [
    ("deepseek_v3", "model.layers.61"),
    ("glm4_moe", "model.layers.46"),
    ("glm4_moe", "model.layers.92"),
    ("qwen3_next", "mtp.layers.0"),
    ("olmoe", "some.other.tower"),
]
"""Prediction layers that these checkpoints carry behind the model (and one that nobody has heard of)."""


def extra_shapes(prefix: str) -> dict[str, list[int]]:
    matrix = [1024, 1024]
    names = [f"{number}.{name}_proj.weight" for number in range(3) for name in ("gate", "up", "down")]
    experts = {f"{prefix}.mlp.experts.{name}": matrix for name in names}
    return experts | {f"{prefix}.eh_proj.weight": matrix, f"{prefix}.shared_head.norm.weight": [1024]}


def add_shard(folder: Path, shapes: dict[str, list[int]]) -> Path:
    """Put further tensors beside a checkpoint of one file."""
    known = load_file(folder / "model.safetensors")
    extra = folder / "model-extra.safetensors"
    write_holes(extra, shapes)
    weight_map = dict.fromkeys(known, "model.safetensors") | dict.fromkeys(shapes, extra.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return extra


@pytest.mark.parametrize(("family", "prefix"), EXTRA_LAYERS)
def test_extra_layers_are_neither_counted_nor_read(tmp_path: Path, family: str, prefix: str):
    """Their experts look like the model's own; the skeleton's loader must not touch their pages."""
    save_tiny(family, tmp_path)
    alone = survey_checkpoint(str(tmp_path))
    extra = add_shard(tmp_path, extra_shapes(prefix))
    drop_from_page_cache([extra])
    survey, ours, theirs = load_both(tmp_path, "float32")
    assert (survey.layers, survey.experts, survey.stride_bytes) == (alone.layers, alone.experts, alone.stride_bytes)
    assert survey.skeleton_bytes == alone.skeleton_bytes
    assert_skeleton_equal(survey, ours, theirs)
    drop_from_page_cache([extra])
    load_both(tmp_path, "float32")
    read_bytes = cached_pages(extra) * 4096
    assert read_bytes < MEBIBYTE < extra.stat().st_size // 8
    check_against_library(tmp_path, "float32")


def test_tensors_that_may_be_missing_are_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(OlmoeForCausalLM, "_keys_to_ignore_on_load_missing", [r"self_attn\.q_norm"])
    save_tiny("olmoe", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".q_norm." not in name}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    survey, ours, theirs = load_both(tmp_path, "float32")
    assert_skeleton_equal(survey, ours, theirs)
    assert torch.equal(ours.get_parameter("model.layers.0.self_attn.q_norm.weight"), torch.ones(48))
