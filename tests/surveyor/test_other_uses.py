"""Settings in config.json that only other uses of a model need change nothing here: not what runs, nor how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.tests.checkpoint.broken import edit_config
from expertflow.tests.models.families import save_tiny
from expertflow.tests.registry.tiny import save_multimodal
from expertflow.tests.registry.trial import TOLERANCE, live, reference
from expertflow.workers.checkpoint.config_values import usable_values
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.model.architecture import load_config
from expertflow.workers.surveyor.surveyor import survey_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

OTHERS: dict[str, Any] = {
    "_attn_implementation": "flash_attention_2",
    "attn_implementation": "kernels-community/flash-attn3",
    "_attn_implementation_internal": "paged|sdpa",
    "experts_implementation": "deepgemm",
    "_experts_implementation": "sonicmoe",
    "use_flash_attention_2": True,
    "pad_token_id": 10**6,
    "output_router_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "return_dict": False,
    "torchscript": True,
    "use_cache": False,
    "cache_implementation": "static",
    "compile_config": {"mode": "max-autotune"},
    "gradient_checkpointing": True,
    "is_encoder_decoder": True,
    "attention_dropout": 7.5,
    "router_aux_loss_coef": None,
    "initializer_range": "small",
    "id2label": {"x": "y"},
    "problem_type": "regression",
    "quantization_config": {},
}


def without_folder(survey: Survey) -> dict[str, Any]:
    left_out = ("folder", "files", "stamps", "checkpoint_bytes")
    return {name: getattr(survey, name) for name in survey.__struct_fields__ if name not in left_out}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    save_tiny("mixtral", folder)
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_a_setting_of_another_use_changes_nothing(plain: Path, name: str):
    """Rows may still be padded and moved, and every byte lies where it did."""
    before = without_folder(survey_checkpoint(str(plain)))
    original = (plain / "config.json").read_bytes()
    try:
        edit_config(plain, **{name: OTHERS[name]})
        assert without_folder(survey_checkpoint(str(plain))) == before
    finally:
        (plain / "config.json").write_bytes(original)


@torch.inference_mode()
def test_with_all_of_them_it_gives_what_transformers_gives(plain: Path, tmp_path: Path):
    theirs = reference(plain)
    save_tiny("mixtral", tmp_path)
    edit_config(tmp_path, **OTHERS)
    survey = survey_checkpoint(str(tmp_path), dtype="float32")
    assert survey.rows.padding and survey.rows.moving and not survey.remarks
    assert live(survey, 3).error(theirs) <= TOLERANCE


@pytest.mark.parametrize("padding", [-1, 128, 10**6, "0", [0], True, None])
def test_a_padding_id_that_the_library_cannot_use(plain: Path, padding: Any, tmp_path: Path):
    save_tiny("olmoe", tmp_path)
    edit_config(tmp_path, pad_token_id=padding)
    assert survey_checkpoint(str(tmp_path)).rows.padding
    assert load_config(tmp_path).pad_token_id in (None, 1)  # the default of its class


def test_nested_configurations_likewise(tmp_path: Path):
    save_multimodal("qwen3_vl_moe", tmp_path)
    before = survey_checkpoint(str(tmp_path))
    flash = {"_attn_implementation": "flash_attention_2", "attn_implementation": "flash_attention_3"}
    config = load_config(tmp_path).to_dict()
    for part in ("text_config", "vision_config"):
        edit_config(tmp_path, **{part: config[part] | flash | {"output_router_logits": True}})
    assert without_folder(survey_checkpoint(str(tmp_path))) == without_folder(before)


def test_what_a_model_needs_stays():
    """Eager attention runs everywhere; NLLB scales by the dropout of its tokens, PhiMoE routes by its jitter."""
    needed = {"attn_implementation": "eager", "moe_token_dropout": 0.2, "router_jitter_noise": 0.01, "pad_token_id": 1}
    assert usable_values(needed | {"resid_pdrop": 0.1, "dropout": 0.1}, "config.json") == needed


@torch.inference_mode()
def test_dynamic_positions_run_up_to_their_original_length(tmp_path: Path):
    """Beyond it the library scales all frequencies, and keys that are cached keep the old ones."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    save_tiny("olmoe", tmp_path, rope_parameters=rope, max_position_embeddings=64)
    survey = survey_checkpoint(str(tmp_path), dtype="float32")
    assert survey.context == 64
    assert live(survey, 3).error(reference(tmp_path)) <= TOLERANCE
