"""Layers whose experts are stored in different types or layouts run as transformers runs them, whatever is resident."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from expertflow.tests.checkpoint.broken import edit_tensors, refusal
from expertflow.tests.loader.arenas import all_experts, assert_experts_equal, fill, make_arena
from expertflow.tests.models.families import save_tiny
from expertflow.tests.registry.trial import TOLERANCE, live, reference
from expertflow.workers.checkpoint.layout import ReadPlan
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("one_thread")

TYPES = (torch.bfloat16, torch.float16, torch.float64)


def store_layers(folder: Path, *dtypes: torch.dtype, also: str = ".experts.") -> None:
    """Store the experts of layer 0, 1, … in these types."""

    def cast(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            layer = next((n for n in range(len(dtypes)) if f".layers.{n}." in name and also in name), None)
            if layer is not None:
                tensors[name] = tensors[name].to(dtypes[layer])

    edit_tensors(folder, cast)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss"])
@torch.inference_mode()
def test_layers_in_several_types(family: str, tmp_path: Path):
    """One expert a tensor, and all experts in one; the second layer as it was, the third like the first."""
    save_tiny(family, tmp_path)
    store_layers(tmp_path, torch.bfloat16, torch.float32, torch.bfloat16)
    survey = survey_checkpoint(str(tmp_path), dtype="float32")
    assert survey.variants[:3] == [0, 1, 0] and {piece.variant for piece in survey.pieces} == {0, 1}
    resident, few = live(survey, survey.expert_count), live(survey, 3)
    assert resident.error(reference(tmp_path)) <= TOLERANCE
    assert few.digests == resident.digests


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_byte_reaches_its_slot(dtype: str, tmp_path: Path):
    save_tiny("qwen3_moe", tmp_path)
    store_layers(tmp_path, *TYPES)
    survey = survey_checkpoint(str(tmp_path), dtype=dtype)
    assert survey.variants == [0, 1, 2]
    assert survey.stored_expert_bytes == survey_checkpoint(str(tmp_path), dtype="float64").expert_bytes // 2
    memory = make_arena(survey.expert_count * survey.stride_bytes)
    assert not any(transfer.error for transfer in fill(survey, all_experts(survey), memory))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert_experts_equal(survey, all_experts(survey), memory, model.state_dict())


def test_layers_that_are_alike_have_one_variant(tmp_path: Path):
    """Nothing changes for them: the table of places has no more columns than before."""
    save_tiny("qwen3_moe", tmp_path)
    survey = survey_checkpoint(str(tmp_path))
    assert survey.variants == []
    assert survey.place_table().shape[2] == len(survey.pieces)


def test_an_expert_is_read_by_its_layers_own_pieces(tmp_path: Path):
    save_tiny("qwen3_moe", tmp_path)
    store_layers(tmp_path, torch.float32, torch.float64)
    survey = survey_checkpoint(str(tmp_path), dtype="float32")
    plan = ReadPlan(survey)
    assert all(run.piece is None for run in plan.runs(0, 3))
    assert [run.count_bytes for run in plan.runs(1, 3)] == [2 * 4 * 48 * 16] * 3
    assert all(run.piece is not None and run.closes for run in plan.runs(1, 3)[-1:])
    assert not np.any(survey.place_table()[0, :, 3:])


def test_experts_of_one_layer_in_two_types_are_refused_with_their_names(tmp_path: Path):
    save_tiny("qwen3_moe", tmp_path)
    store_layers(tmp_path, torch.float32, torch.bfloat16, also=".experts.7.up_proj.")
    name = "model.layers.1.mlp.experts.7.up_proj.weight"
    refusal(tmp_path, f"{name} is bfloat16 [16, 48]", "model.layers.1.mlp.experts.gate_up_proj")
