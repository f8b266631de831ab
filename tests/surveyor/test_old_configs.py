"""A config.json as transformers 4 wrote it means what one of transformers 5 does: types, rotary positions, limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.tests.checkpoint.broken import edit_config
from expertflow.tests.models.families import CONTEXT, FAMILIES, save_tiny, tiny_config
from expertflow.tests.surveyor.skeletons import NO_FEED
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.experts.routing import RoutingCollector
from expertflow.workers.compute.skeleton import load_model
from expertflow.workers.model.architecture import build_on_meta, load_config
from expertflow.workers.model.rope import rope_limits
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from msgspec.structs import replace

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": CONTEXT // 4,
}
"""As DeepSeek-V2 and -V3 have it."""

ROTARY = [family for family in FAMILIES if getattr(tiny_config(family), "rope_parameters", None)]


def age(folder: Path, type_key: str) -> None:
    """Rewrite config.json: `torch_dtype`, `rope_theta` and `rope_scaling` at the top, whose type has had two names."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters", None) or {}
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    if "rope_theta" in rope:
        config["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    kind = rope.pop("rope_type", "default")
    config["rope_scaling"] = None if kind == "default" else rope | {type_key: kind}
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("type_key", ["type", "rope_type"])
@pytest.mark.parametrize("family", ROTARY)
def test_old_and_new_are_one_configuration(tmp_path: Path, family: str, type_key: str):
    save_tiny(family, tmp_path, dtype=torch.bfloat16)
    new = load_config(tmp_path)
    age(tmp_path, type_key)
    assert "rope_parameters" not in json.loads((tmp_path / "config.json").read_text())
    old = load_config(tmp_path)
    assert old.dtype == new.dtype == torch.bfloat16
    assert _rope(old.rope_parameters) == _rope(new.rope_parameters)
    assert rope_limits(old) == rope_limits(new)
    assert type(build_on_meta(old, torch.float32)) is type(build_on_meta(new, torch.float32))


def _rope(parameters: dict[str, Any]) -> dict[str, Any]:
    """Without the older name of the type, which the library keeps beside the newer."""
    return {name: value for name, value in parameters.items() if name != "type"}


def test_an_old_checkpoint_is_surveyed_and_loaded_as_a_new_one(tmp_path: Path):
    """Rotary frequencies are no weights: only the configuration says what they are."""
    save_tiny("deepseek_v3", tmp_path, dtype=torch.bfloat16, rope_parameters=YARN)
    survey, frequencies = read(tmp_path)
    age(tmp_path, "type")
    old_survey, old_frequencies = read(tmp_path)
    assert replace(old_survey, stamps={}) == replace(survey, stamps={})
    edit_config(tmp_path, rope_scaling=None)  # what a configuration that is not understood would give
    _, plain = read(tmp_path)
    assert frequencies
    for name, own in frequencies.items():
        assert torch.equal(old_frequencies[name], own)
        assert not torch.equal(plain[name], own)


def read(folder: Path) -> tuple[Survey, dict[str, torch.Tensor]]:
    """The survey, and the rotary frequencies that compute would use."""
    survey = survey_checkpoint(str(folder))
    buffers = load_model(survey, NO_FEED, RoutingCollector()).named_buffers()
    return survey, {name: buffer for name, buffer in buffers if "inv_freq" in name}
