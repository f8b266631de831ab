"""compressed-tensors, GPTQ and AWQ: packed and dequantised give the same bits, and the logits of the dense twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.errors import CheckpointError
from expertflow.tests.checkpoint.broken import edit_tensors, refusal
from expertflow.tests.loader.arenas import all_experts, assert_experts_equal, fill, make_arena
from expertflow.tests.models.coded import FORMS, save_coded
from expertflow.tests.models.published import Tensors
from expertflow.tests.registry.trial import TOLERANCE, live, reference
from expertflow.workers.model.architecture import load_skeleton
from expertflow.workers.packed.choice import ExpertsIn, PackingChoice
from expertflow.workers.surveyor.entry import plan_sizes
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import CompressedTensorsConfig

MATRIX = "model.layers.1.mlp.experts.3.up_proj."
pytestmark = pytest.mark.usefixtures("one_thread")


QUICK = ("int4 groups, zeros", "nvfp4", "gptq act-order", "awq")


SOME = [form if form in QUICK else pytest.param(form, marks=pytest.mark.slow) for form in FORMS]


@pytest.mark.parametrize("form", SOME)
@torch.inference_mode()
def test_logits_of_the_dense_twin(form: str, tmp_path: Path):
    dense = save_coded(form, tmp_path)
    packed, dequantised = (survey_checkpoint(str(tmp_path), experts_in=kind) for kind in ("packed", "dequantised"))
    assert packed.packings and packed.expert_bytes < dequantised.expert_bytes / 2
    few = live(packed, 3)
    assert few.digests == live(dequantised, 3).digests
    assert few.error(reference(dense)) <= TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_every_value_in_bfloat16(form: str, tmp_path: Path):
    """Scales in the types that are published; experts and skeleton, bit for bit."""
    dense = save_coded(form, tmp_path, torch.float16 if form[:3] in ("gpt", "awq") else torch.bfloat16)
    survey = survey_checkpoint(str(tmp_path), dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.bfloat16)
    memory = make_arena(survey.expert_count * survey.stride_bytes)
    assert not any(transfer.error for transfer in fill(survey, all_experts(survey), memory))
    assert_experts_equal(survey, all_experts(survey), memory, model.state_dict())
    skeleton = load_skeleton(tmp_path, torch.bfloat16).state_dict()
    wanted = model.state_dict()
    assert len(skeleton) > 10 and all(torch.equal(tensor, wanted[name]) for name, tensor in skeleton.items())


@pytest.mark.parametrize("form", ["int4 groups", "gptq act-order"])
@torch.inference_mode()
def test_experts_alone_are_quantised(form: str, tmp_path: Path):
    """As `expertflow quantize` leaves attention, and with one layer that was left out."""
    dense = save_coded(form, tmp_path, only="experts")

    def restore(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".layers.1." in name and ".experts." in name]:
            del tensors[name]
        plain = load_file(dense / "model.safetensors")
        tensors.update({name: tensor for name, tensor in plain.items() if ".layers.1." in name and ".experts." in name})

    edit_tensors(tmp_path, restore)
    packed = survey_checkpoint(str(tmp_path), experts_in="packed")
    assert packed.variants[:3] == [0, 1, 0] and {own.variant for own in packed.packings} == {0}
    few, resident = live(packed, 3), live(packed, packed.expert_count)
    assert few.digests == resident.digests == live(survey_checkpoint(str(tmp_path)), 3).digests
    assert few.error(reference(dense)) <= TOLERANCE


@torch.inference_mode()
def test_transformers_reads_the_same(tmp_path: Path):
    """The library's own way with compressed-tensors, not ours."""
    save_coded("int4 groups", tmp_path)
    stated = CompressedTensorsConfig(dequantize=True)
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, quantization_config=stated).eval()
    assert live(survey_checkpoint(str(tmp_path), experts_in="packed"), 3).error(theirs) <= TOLERANCE


@pytest.mark.parametrize(
    ("form", "name", "change", "words"),
    [
        ("int4 groups", "weight_packed", lambda one: one[:, :-1], "words for 64 columns"),
        ("int4 groups", "weight_scale", lambda one: one[:, :3], "do not divide"),
        ("int4 groups, zeros", "weight_zero_point", lambda one: one[:1], "zero points"),
        ("int4 groups", "weight_scale", lambda one: one.int(), "scales in I"),
        ("nvfp4", "weight_scale", lambda one: one[:, :2], "groups of 16"),
        ("gptq", "qweight", lambda one: one[:-1], "needs qweight"),
        ("gptq", "scales", lambda one: one[:, :-8], "no scales that fit"),
        ("awq", "qzeros", lambda one: one[:-1], "needs qzeros"),
    ],
)
def test_parts_that_do_not_fit_are_refused(form: str, name: str, change: Any, words: str, tmp_path: Path):
    save_coded(form, tmp_path)
    kind = ["experts", "3", "up_proj"][-1]

    def damage(tensors: Tensors) -> None:
        for own in [own for own in tensors if own.endswith(f"{kind}.{name}")]:
            tensors[own] = change(tensors[own]).contiguous()

    edit_tensors(tmp_path, damage)
    refusal(tmp_path, words, "gate_up_proj")


@pytest.mark.parametrize("form", ["int4 groups", "nvfp4", "gptq"])
@pytest.mark.parametrize("experts_in", ["packed", "dequantised"])
def test_a_scale_that_is_no_number_is_refused(form: str, experts_in: ExpertsIn, tmp_path: Path):
    save_coded(form, tmp_path)

    def damage(tensors: Tensors) -> None:
        name = MATRIX + ("scales" if form == "gptq" else "weight_scale")
        whole = tensors[name].float()
        whole[2, 1] = torch.nan
        tensors[name] = whole.to(tensors[name].dtype)

    edit_tensors(tmp_path, damage)
    survey = survey_checkpoint(str(tmp_path), experts_in=experts_in)
    memory = make_arena(survey.stride_bytes)
    (broken,) = fill(survey, {0: (1, 3)}, memory)
    (sound,) = fill(survey, {0: (1, 4)}, memory)
    assert isinstance(broken.error, CheckpointError) and "NaN" in str(broken.error) and not sound.error
    assert "gate_up_proj" in str(broken.error) and str(tmp_path) in str(broken.error)


def test_gate_and_up_in_different_orders(tmp_path: Path):
    """A slot holds the order once; dequantised, each has its own."""
    save_coded("gptq act-order", tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update({f"{MATRIX}g_idx": tensors[f"{MATRIX}g_idx"].flip(0)}))
    errors = {}
    for form in ("packed", "dequantised"):
        survey = survey_checkpoint(str(tmp_path), experts_in=form)
        (transfer,) = fill(survey, {0: (1, 3)}, make_arena(survey.stride_bytes))
        errors[form] = transfer.error
    assert isinstance(errors["packed"], CheckpointError) and "different ones" in str(errors["packed"])
    assert errors["dequantised"] is None


@pytest.mark.parametrize("form", SOME)
def test_a_plan_without_weights(form: str, tmp_path: Path):
    """By config.json alone the sizes are those of the survey; but a whole tensor's scales of gate and up are two."""
    save_coded(form, tmp_path, torch.float16 if form[:3] in ("gpt", "awq") else torch.float32)
    survey = survey_checkpoint(str(tmp_path), experts_in="packed")
    (tmp_path / "model.safetensors").unlink()
    planned = plan_sizes(str(tmp_path), choice=PackingChoice("packed"))
    assert (planned.weights_here, planned.parameters) == (False, survey.parameters)
    wholes = 4 * (form in ("nvfp4", "fp8 tensor"))
    assert planned.expert_bytes == survey.expert_bytes - wholes
    assert abs(planned.stride_bytes - survey.stride_bytes) <= 256
