"""The library's loading rules as places of bytes: renames, stacks, concatenations and transposes; others are refused.

The rules of a family are exchanged for others, so that `from_pretrained` with the same rules is the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.errors import CheckpointError
from expertflow.tests.loader.arenas import all_experts, assert_experts_equal, fill, make_arena
from expertflow.tests.models.families import tiny_model
from expertflow.tests.surveyor.skeletons import assert_skeleton_equal, load_both
from expertflow.workers.checkpoint.headers import StoredTensor
from expertflow.workers.loader.transfer import expert_sources
from expertflow.workers.surveyor.conversions import ParameterSource, expert_parts
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from msgspec.structs import replace
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    ConversionOps,
    Interleave,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
)

Tensors = dict[str, torch.Tensor]
Rules = Callable[[list[Any]], None]


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> Rules:
    """Exchange OLMoE's loading rules."""
    conversion_mapping.get_checkpoint_conversion_mapping("olmoe")
    cache = conversion_mapping._checkpoint_conversion_mapping_cache
    return lambda new: monkeypatch.setitem(cache, "olmoe", new)  # pyright: ignore[reportArgumentType]


def save_changed(folder: Path, change: Callable[[str, torch.Tensor], Tensors]) -> None:
    """A fused OLMoE checkpoint with every tensor changed."""
    tiny_model("olmoe").save_pretrained(folder, save_original_format=False)
    file = folder / "model.safetensors"
    changed: Tensors = {}
    for name, tensor in load_file(file).items():
        changed |= {key: value.contiguous() for key, value in change(name, tensor).items()}
    save_file(changed, file, {"format": "pt"})


def check_against_library(folder: Path, dtype: str) -> list[str]:
    """Compare all experts with `from_pretrained`'s; the operations that were needed."""
    survey = survey_checkpoint(str(folder), dtype=dtype)
    memory = make_arena(survey.expert_count * survey.stride_bytes)
    experts = all_experts(survey)
    assert not any(transfer.error for transfer in fill(survey, experts, memory))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict()
    assert_experts_equal(survey, experts, memory, reference)
    return [piece.operation for piece in survey.pieces]


def transposing(**options: Any) -> list[WeightConverter]:
    names = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    return [WeightConverter(name, name, operations=[Transpose(1, 2, **options)]) for name in names]


def turned(name: str, tensor: torch.Tensor) -> Tensors:
    return {name: tensor.transpose(1, 2) if ".experts." in name else tensor}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("check_dims", [False, True])
def test_transposed_experts(rules: Rules, tmp_path: Path, dtype: str, check_dims: bool):
    rules(transposing(check_dims=check_dims))
    save_changed(tmp_path, turned)
    assert check_against_library(tmp_path, dtype) == ["transpose", "transpose"]


def test_transposed_experts_in_many_chunks(rules: Rules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Big matrices are turned block by block, so that an urgent expert can come between."""
    monkeypatch.setattr(expert_sources, "CHUNK_BYTES", 1000)
    rules(transposing())
    save_changed(tmp_path, turned)
    check_against_library(tmp_path, "float32")


def test_a_rule_that_checks_shapes_leaves_the_right_ones_alone(rules: Rules, tmp_path: Path):
    rules(transposing(check_dims=True))
    save_changed(tmp_path, lambda name, tensor: {name: tensor})
    assert check_against_library(tmp_path, "float32") == ["copy", "copy"]


def unstacked(name: str, tensor: torch.Tensor) -> Tensors:
    """One tensor an expert, named in the checkpoint's own way, down-projections transposed."""
    if ".experts." not in name:
        return {name: tensor}
    prefix, _, kind = name.partition(".mlp.experts.")
    each = [slice_.t() if kind == "down_proj" else slice_ for slice_ in tensor]
    return {f"{prefix}.ffn.bank.{number}.{kind}.w": matrix for number, matrix in enumerate(each)}


def test_renamed_stacked_and_transposed(rules: Rules, tmp_path: Path):
    """Experts 2 and 10 are in the order of numbers, not of letters."""
    source = "mlp.experts.*."
    rules(
        [
            WeightRenaming(r"\.ffn\.bank\.", ".mlp.experts."),
            WeightConverter(source + "gate_up_proj.w", "mlp.experts.gate_up_proj", operations=[MergeModulelist(0)]),
            WeightConverter(
                source + "down_proj.w", "mlp.experts.down_proj", operations=[MergeModulelist(0), Transpose(1, 2)]
            ),
        ]
    )
    save_changed(tmp_path, unstacked)
    assert check_against_library(tmp_path, "float32") == ["copy", "transpose"]


def test_stacked_experts_whose_parts_are_concatenated(rules: Rules, tmp_path: Path):
    """As Step-3 stores them: gate and up of all experts, each in one tensor."""
    names = [f"mlp.experts.{kind}_proj.weight" for kind in ("gate", "up")]
    rules([WeightConverter(names, "mlp.experts.gate_up_proj", operations=[Concatenate(dim=1)])])

    def halve(name: str, tensor: torch.Tensor) -> Tensors:
        if not name.endswith("gate_up_proj"):
            return {name: tensor}
        parts = tensor.chunk(2, dim=1)
        return {
            name.replace("gate_up", kind) + ".weight": part for kind, part in zip(("gate", "up"), parts, strict=True)
        }

    save_changed(tmp_path, halve)
    assert check_against_library(tmp_path, "float32") == ["copy", "copy", "copy"]


def test_a_skeleton_tensor_that_the_library_splits_is_not_missing(rules: Rules, tmp_path: Path):
    """One stored tensor, three parameters: the rule is found by its first target only."""
    names = [f"self_attn.{kind}_proj.weight" for kind in "qkv"]
    rules([WeightConverter("self_attn.qkv.weight", names, operations=[Chunk(dim=0)])])
    plain = tiny_model("olmoe").state_dict()

    def join(name: str, tensor: torch.Tensor) -> Tensors:
        if name.endswith("q_proj.weight"):
            parts = [plain[name.replace("q_proj", f"{kind}_proj")] for kind in "qkv"]
            return {name.replace("q_proj", "qkv"): torch.cat(parts)}
        return {} if "k_proj" in name or "v_proj" in name else {name: tensor}

    save_changed(tmp_path, join)
    assert_skeleton_equal(*load_both(tmp_path, "float32"))


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 1 << 20])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_gate_and_up_that_alternate(
    rules: Rules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, chunk_bytes: int
):
    """As Inkling stores them. However small the chunks are, no pair of rows is torn."""
    monkeypatch.setattr(expert_sources, "CHUNK_BYTES", chunk_bytes)
    name = "mlp.experts.gate_up_proj"
    rules([WeightConverter(name, name, operations=[Interleave(dim=1)])])
    save_changed(tmp_path, lambda name, tensor: {name: tensor})
    same = "copy" if dtype == "float32" else "cast"
    assert check_against_library(tmp_path, dtype) == ["deinterleave", same]


def test_other_operations_are_refused_by_name(rules: Rules, tmp_path: Path):
    """Silently reading them would be wrong."""
    name = "mlp.experts.gate_up_proj"
    rules([WeightConverter(name, name, operations=[Interleave(dim=2)])])
    save_changed(tmp_path, lambda name, tensor: {name: tensor})
    with pytest.raises(CheckpointError, match="Interleave") as caught:
        survey_checkpoint(str(tmp_path))
    assert "layers.0.mlp.experts.gate_up_proj" in caught.value.where
    assert caught.value.remedy


def stacked_source(operations: list[ConversionOps], patterns: int = 1) -> ParameterSource:
    names = [f"experts.*.w{number}" for number in range(patterns)]
    tensors = {
        name: [StoredTensor(f"{name}.{i}", 0, "float32", [4, 6], 100 * i, 96) for i in range(2)] for name in names
    }
    return ParameterSource(names, operations, tensors)


@pytest.mark.parametrize(
    "operations",
    [
        [MergeModulelist(dim=1)],
        [MergeModulelist(dim=0), Concatenate(dim=2)],
        [MergeModulelist(dim=0), Concatenate(dim=0)],
        [Concatenate(dim=1)],
        [MergeModulelist(dim=0), MergeModulelist(dim=0)],
        [MergeModulelist(dim=0), Transpose(0, 1)],
        [Interleave(dim=2)],
        [Interleave(dim=1, inverse=True)],
        [Transpose(1, 2), Interleave(dim=1)],
        [Chunk(dim=0)],
    ],
    ids=repr,
)
def test_other_operations_and_other_dimensions_are_refused(operations: list[ConversionOps]):
    with pytest.raises(CheckpointError, match=type(operations[-1]).__name__) as caught:
        expert_parts("layer.up_proj", stacked_source(operations), [2, 4, 6])
    assert caught.value.where == "layer.up_proj"


def test_an_odd_number_of_rows_cannot_alternate():
    source = stacked_source([MergeModulelist(dim=0), Interleave(dim=1)])
    source.stored = {name: [replace(each, shape=[3, 8]) for each in own] for name, own in source.stored.items()}
    with pytest.raises(CheckpointError, match="odd"):
        expert_parts("layer.up_proj", source, [2, 3, 8])


def test_a_transpose_of_concatenated_parts_is_refused():
    """The parts would not lie one after the other in the slot."""
    operations: list[ConversionOps] = [MergeModulelist(dim=0), Concatenate(dim=1), Transpose(1, 2)]
    with pytest.raises(CheckpointError, match="Transpose"):
        expert_parts("layer.up_proj", stacked_source(operations, patterns=2), [2, 6, 8])


def test_parts_lie_in_the_order_of_the_patterns():
    parts = expert_parts("gate_up", stacked_source([MergeModulelist(0), Concatenate(1)], patterns=2), [2, 8, 6])
    assert [part.at for part in parts] == [[(0, 0), (0, 100)]] * 2
    assert [part.shape for part in parts] == [[4, 6], [4, 6]]
