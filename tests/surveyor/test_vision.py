"""Surveys of vision-language checkpoints: the right class, the skeleton of `from_pretrained`, refusals by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expertflow.errors import CheckpointError
from expertflow.runtime.commands import plan
from expertflow.runtime.plan.fit import model_needs
from expertflow.tests.models.vision import VISION_FAMILIES, VisionReference, save_vision
from expertflow.tests.surveyor.skeletons import NO_FEED, assert_skeleton_equal
from expertflow.workers.compute.experts.routing import RoutingCollector
from expertflow.workers.compute.skeleton import load_model
from expertflow.workers.model.architecture import WITH_IMAGES, build_on_meta, model_class
from expertflow.workers.surveyor.sizing import model_sizes
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_skeleton_equals_from_pretrained_and_rows_move(family: str, tmp_path: Path) -> None:
    """The vision tower is part of the skeleton, and the probe has tried a small copy of the whole."""
    save_vision(family, tmp_path)
    survey = survey_checkpoint(str(tmp_path))
    assert_skeleton_equal(survey, load_model(survey, NO_FEED, RoutingCollector()), VisionReference(tmp_path).model)
    assert survey.architecture.endswith("ForConditionalGeneration")
    assert (survey.rows.padding, survey.rows.moving, survey.rows.reason) == (True, True, "")


def test_both_kinds_of_experts_count_with_their_own_size(tmp_path: Path) -> None:
    """The library's default configuration, which is that of ERNIE-4.5-VL-28B-A3B."""
    config = CONFIG_MAPPING["ernie4_5_vl_moe"]()
    config.save_pretrained(tmp_path)
    sizes = model_sizes(tmp_path)
    width, (text, vision), experts, layers = 2560, (1536, 512), 64, 27
    assert (sizes.layers, sizes.experts, sizes.kinds, sizes.top_k) == (layers, 2 * experts, 2, 6)
    assert sizes.kind_bytes == [3 * width * text * 2, 3 * width * vision * 2]
    assert sizes.experts_bytes == layers * experts * sum(sizes.kind_bytes)
    whole = sum(each.numel() for each in build_on_meta(config, torch.bfloat16).parameters())
    assert sizes.skeleton_bytes + sizes.experts_bytes == pytest.approx(2 * whole, rel=0.01)
    assert plan.needs_facts("ernie", model_needs(sizes))["one expert"] == "23.6 MB or 7.9 MB"


def test_sizes_without_weights_are_those_of_the_survey(tmp_path: Path) -> None:
    save_vision("ernie4_5_vl_moe", tmp_path)
    sizes, survey = model_sizes(tmp_path, "float32"), survey_checkpoint(str(tmp_path), dtype="float32")
    for name in ("tensors", "stride_bytes", "experts", "kinds", "skeleton_bytes", "stored_expert_bytes", "top_k"):
        assert getattr(sizes, name) == getattr(survey, name), name


def test_a_text_checkpoint_of_a_family_with_images_stays_text() -> None:
    """The same configuration class serves both; `architectures` says which was published."""
    config = CONFIG_MAPPING["qwen3_5_moe"]()
    config.architectures = ["Qwen3_5MoeForCausalLM"]
    assert model_class(config).__name__ == "Qwen3_5MoeForCausalLM"
    config.architectures = ["Qwen3_5MoeForConditionalGeneration"]
    assert model_class(config).__name__ == "Qwen3_5MoeForConditionalGeneration"


def test_the_families_that_are_tested_are_those_that_run() -> None:
    assert set(VISION_FAMILIES) == WITH_IMAGES


@pytest.mark.parametrize("family", ["deepseek_ocr2", "minimax_m3_vl"])
def test_other_ways_with_images_are_refused_by_name(family: str) -> None:
    with pytest.raises(CheckpointError, match=f"{family}.*qwen3_vl_moe"):
        model_class(CONFIG_MAPPING[family]())
