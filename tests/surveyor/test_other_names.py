"""Models that are another under a new name run by their architecture, and it is said."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from expertflow.errors import CheckpointError
from expertflow.tests.checkpoint.broken import edit_config, edit_tensors, refusal
from expertflow.tests.models.families import save_tiny
from expertflow.tests.registry import tiny
from expertflow.tests.registry.trial import TOLERANCE, live, reference
from expertflow.workers.model.architecture import load_config, takes_images
from expertflow.workers.model.configuration import renaming_note, run_as
from expertflow.workers.model.families.refusals import NOT_DISPATCHED
from expertflow.workers.surveyor.sizing import model_sizes, routed_experts
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def kimi_k2(tmp_path: Path) -> tuple[Path, Any]:
    """As Kimi-K2 is published: DeepSeek-V3 but for its name, with code of its own. And transformers' model of it."""
    save_tiny("deepseek_v3", tmp_path)
    theirs = reference(tmp_path)
    own = {"AutoConfig": "configuration_deepseek.DeepseekV3Config", "AutoModelForCausalLM": "modeling_deepseek.Own"}
    edit_config(tmp_path, model_type="kimi_k2", architectures=["DeepseekV3ForCausalLM"], auto_map=own)
    return tmp_path, theirs


@torch.inference_mode()
def test_an_unknown_name_runs_as_its_architecture(kimi_k2: tuple[Path, Any]):
    folder, theirs = kimi_k2
    survey = survey_checkpoint(str(folder), dtype="float32")
    assert live(survey, 3).error(theirs) <= TOLERANCE
    assert survey.model_type == "deepseek_v3"
    assert any("kimi_k2" in remark and "deepseek_v3" in remark for remark in survey.remarks)
    assert model_sizes(folder).remarks == survey.remarks


def test_other_shapes_under_that_name_are_refused(kimi_k2: tuple[Path, Any]):
    folder, _ = kimi_k2
    name = "model.layers.1.self_attn.q_a_proj.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name][1:].clone()}))
    refusal(folder, "the configuration asks for", name)


def test_neither_name_is_known(tmp_path: Path):
    save_tiny("olmoe", tmp_path)
    edit_config(tmp_path, model_type="new", architectures=["NewForCausalLM"])
    text = refusal(tmp_path, 'neither model_type "new" nor architectures', tmp_path / "config.json")
    assert "NewForCausalLM" in text


NAMES: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "olmoe", "architectures": ["MixtralForCausalLM"]}, "olmoe"),
    ({"model_type": "x", "architectures": ["MixtralForCausalLM"]}, "mixtral"),
    ({"architectures": ["Qwen3MoeForCausalLM"]}, "qwen3_moe"),
    ({"model_type": 3, "architectures": ["Qwen3MoeForCausalLM"]}, "qwen3_moe"),
    ({"model_type": "x", "architectures": ["Qwen3_5MoeForCausalLM"]}, "qwen3_5_moe_text"),
    ({"model_type": "x", "architectures": ["Qwen3_5MoeForCausalLM"], "text_config": {}}, "qwen3_5_moe"),
    ({"model_type": "x", "architectures": ["Qwen3VLMoeForConditionalGeneration"], "text_config": {}}, "qwen3_vl_moe"),
    ({"model_type": "x", "architectures": ["SwitchTransformersForConditionalGeneration"]}, "switch_transformers"),
]


@pytest.mark.parametrize(("values", "model_type"), NAMES)
def test_which_model_a_configuration_is(values: dict[str, Any], model_type: str):
    assert run_as(values) == model_type
    assert bool(renaming_note(values)) == (values.get("model_type") != model_type)


# Language models alone, under the name of one that takes images


@torch.inference_mode()
def test_a_text_only_checkpoint_of_a_class_that_takes_images(tmp_path: Path):
    tiny.save_tiny("qwen3_5_moe_text", tmp_path)
    text, theirs = load_config(tmp_path).to_dict(), reference(tmp_path)
    whole: dict[str, Any] = {
        "model_type": "qwen3_5_moe",
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "text_config": text,
        "vision_config": {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": text["hidden_size"]},
    }
    (tmp_path / "config.json").write_text(json.dumps(whole))
    survey = survey_checkpoint(str(tmp_path), dtype="float32")
    assert live(survey, 3).error(theirs) <= TOLERANCE
    assert any("language model runs alone" in remark for remark in survey.remarks)
    assert not takes_images(load_config(tmp_path))


@pytest.mark.parametrize("model_type", NOT_DISPATCHED)
def test_families_outside_the_interface_are_refused_for_the_true_reason(model_type: str):
    kind = CONFIG_MAPPING[model_type]
    model: Any = SimpleNamespace(config=kind(), named_modules=lambda: iter(()))
    with pytest.raises(CheckpointError, match=NOT_DISPATCHED[model_type]):
        routed_experts(model, Path("folder"))
