"""Switch Transformers and NLLB-MoE as they are stored: skeleton and experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from expertflow.tests.loader.arenas import all_experts, assert_experts_equal, fill, make_arena
from expertflow.tests.models.nllb import save_nllb
from expertflow.tests.models.switch import save_switch
from expertflow.tests.surveyor.test_skeleton import shared_storage, tensors
from expertflow.workers.compute.experts.layer import ExpertFeed
from expertflow.workers.compute.experts.routing import RoutingCollector
from expertflow.workers.compute.skeleton import load_model
from expertflow.workers.model.kv_cost import kv_bytes
from expertflow.workers.model.probing.probe import probe
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from transformers import AutoModelForSeq2SeqLM, NllbMoeConfig, SwitchTransformersConfig

SAVERS = {"switch": save_switch, "nllb": save_nllb}
EXPERTS = {
    "switch": ("wi.weight", "wo.weight"),
    "nllb": ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"),
}
NO_FEED = cast(ExpertFeed, None)


def is_expert(name: str) -> bool:
    return ".experts.expert_" in name


@pytest.mark.parametrize(("dtype", "tied"), [("auto", False), ("bfloat16", True)])
@pytest.mark.parametrize("family", SAVERS)
def test_skeleton_equals_from_pretrained(tmp_path: Path, dtype: str, tied: bool, family: str) -> None:
    SAVERS[family](tmp_path, tie_word_embeddings=tied)
    survey = survey_checkpoint(str(tmp_path), dtype=dtype)
    ours = load_model(survey, NO_FEED, RoutingCollector())
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=dtype)
    mine, reference = tensors(ours), tensors(theirs)
    assert {name for name in reference if not is_expert(name)} == set(mine)
    for name, tensor in mine.items():
        assert tensor.dtype == reference[name].dtype, name
        assert torch.equal(tensor, reference[name]), name
    assert shared_storage(ours, set()) == shared_storage(theirs, set(filter(is_expert, reference)))
    assert survey.skeleton_bytes == sum(
        {id(each): each.nbytes for each in [*ours.parameters(), *ours.buffers()]}.values()
    )


@pytest.mark.parametrize("family", SAVERS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_experts_equal_from_pretrained(tmp_path: Path, stored: torch.dtype, family: str) -> None:
    SAVERS[family](tmp_path, dtype=stored)
    survey = survey_checkpoint(str(tmp_path))
    memory = make_arena(survey.expert_count * survey.stride_bytes)
    experts = all_experts(survey)
    assert not [each.error for each in fill(survey, experts, memory) if each.error]
    own = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype="auto").state_dict()
    fused: dict[str, Any] = {
        f"{module}.{name}": torch.stack([own[f"{module}.expert_{number}.{name}"] for number in range(survey.experts)])
        for module in survey.module_names
        for name in EXPERTS[family]
    }
    assert_experts_equal(survey, experts, memory, fused)


@pytest.mark.parametrize("config", [SwitchTransformersConfig(), NllbMoeConfig()], ids=type)
def test_rows_of_the_published_configuration_can_pad_and_move(config: Any) -> None:
    abilities = probe(config)
    assert abilities.padding, abilities.reason
    assert abilities.moving, abilities.reason


def test_a_position_costs_a_prompt_and_a_decoder_its_keys_and_values() -> None:
    cost = kv_bytes(SwitchTransformersConfig(), torch.bfloat16)
    assert cost.per_position_bytes == 12 * 2 * 12 * 64 * 2 * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_so_does_a_decoder_that_is_longer_than_its_encoder(dtype: torch.dtype) -> None:
    """In float16 the library looks at its numbers, which measuring does without."""
    cost = kv_bytes(NllbMoeConfig(encoder_layers=4, decoder_layers=8), dtype)
    assert cost.per_position_bytes == 8 * 2 * 16 * 64 * 2 * 2
