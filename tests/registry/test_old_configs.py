"""What transformers 4 and 5 call the same thing, for every architecture: one configuration, one plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from expertflow.tests.registry.demanding import COMPOSITES
from expertflow.tests.registry.page import load_rows
from expertflow.tests.registry.tiny import full_config, tiny_config
from expertflow.tests.surveyor.test_old_configs import age
from expertflow.workers.model.architecture import load_config
from expertflow.workers.surveyor.sizing import model_sizes
from transformers import PreTrainedConfig

TYPES = [row.model_type for row in load_rows().models if row.model_type not in COMPOSITES]


def rotary(config: PreTrainedConfig) -> dict[str, Any]:
    """Its rotary positions, if all layers have the same: transformers 4 knew no others by a common name."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return {} if any(value is None or isinstance(value, dict) for value in parameters.values()) else parameters


FREQUENCIES = [1.0] * 64
LINEAR: dict[str, Any] = {"rope_type": "linear", "factor": 3.0}
SCALINGS: dict[str, dict[str, Any]] = {
    "cohere2_moe": {"rope_type": "default"},  # transformers 5.23.0 does not read its rope_scaling
    "phimoe": {
        "rope_type": "longrope",
        "short_factor": FREQUENCIES,
        "long_factor": FREQUENCIES,
        "short_mscale": 1.25,
        "long_mscale": 1.5,
        "original_max_position_embeddings": 4096,
    },
}
KEPT_BESIDE = ("rope_theta", "rope_scaling", "partial_rotary_factor")
"""Older names that some classes have as attributes of their own, which nothing reads any more."""


def facts(folder: Path) -> dict[str, Any]:
    """All that the library makes of a config.json, older names that it keeps beside newer ones left out."""
    values = load_config(folder).to_dict()
    values["rope_parameters"] = {
        name: value for name, value in (values.get("rope_parameters") or {}).items() if name != "type"
    }
    return {name: value for name, value in values.items() if name not in KEPT_BESIDE}


def grow_old(folder: Path, config: PreTrainedConfig, type_key: str) -> dict[str, Any]:
    """Rewrite config.json as transformers 4 did, as far as it knew such a model; what it says then."""
    file = folder / "config.json"
    if rotary(config):
        age(folder, type_key)
    else:
        written = json.loads(file.read_text())
        file.write_text(json.dumps(written | {"torch_dtype": written.pop("dtype")}))
    return json.loads(file.read_text())


@pytest.mark.parametrize("model_type", TYPES)
def test_rotary_positions_and_types(tmp_path: Path, model_type: str) -> None:
    """With values that are nobody's default: what was not understood would be another configuration."""
    config = full_config(model_type)
    config.dtype = "float16"
    if rotary(config):
        config.rope_parameters |= SCALINGS.get(model_type, LINEAR) | {"rope_theta": 54321.0}
    for type_key in ("type", "rope_type"):
        config.save_pretrained(tmp_path)
        new = facts(tmp_path)
        written = grow_old(tmp_path, config, type_key)
        assert written["torch_dtype"] == "float16" and not (rotary(config) and "rope_parameters" in written)
        assert facts(tmp_path) == new
        assert new["dtype"] == "float16" and rotary(config).items() <= new["rope_parameters"].items()


@pytest.mark.parametrize("model_type", TYPES)
def test_other_names_of_the_same_setting(tmp_path: Path, model_type: str) -> None:
    """`num_experts` and `num_local_experts`, …: whatever the library declares to be the same, where it is a number."""
    config, file = full_config(model_type), tmp_path / "config.json"
    config.save_pretrained(tmp_path)
    default = json.loads(file.read_text())
    for alias, own in type(config).attribute_map.items():
        if isinstance(default.get(own), int):
            other = not default[own] if isinstance(default[own], bool) else 2 * default[own]
            file.write_text(json.dumps(default | {own: other}))
            new = facts(tmp_path)
            without = {name: value for name, value in default.items() if name != own}
            file.write_text(json.dumps(without | {alias: other}))
            assert facts(tmp_path) == new and new[own] == other


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_an_old_configuration_gives_the_same_plan(tmp_path: Path, model_type: str) -> None:
    config = tiny_config(model_type)
    config.dtype = "float16"
    config.save_pretrained(tmp_path)
    new = model_sizes(tmp_path)
    grow_old(tmp_path, config, "type")
    assert model_sizes(tmp_path) == new
    assert new.dtype == "float16"
