"""Quantised weights whose config.json says nothing of it, and broken GGUF: refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from expertflow.errors import CheckpointError
from expertflow.tests.checkpoint.broken import INDEX, WEIGHTS, edit_config, edit_tensors, refusal
from expertflow.workers.surveyor.entry import plan_sizes
from expertflow.workers.surveyor.surveyor import survey_checkpoint

EXPERT = "model.layers.1.mlp.experts.3.down_proj."
PACKED = {
    "gptq": ["qweight", "qzeros", "scales", "g_idx"],
    "gptq or awq": ["qweight", "qzeros", "scales"],
    "bitsandbytes": ["weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"],
    "bitsandbytes, 8 bits": ["weight", "weight_format", "SCB"],
    "nvfp4": ["weight", "weight_scale", "weight_scale_2", "input_scale"],
    "compressed-tensors": ["weight_packed", "weight_scale", "weight_shape"],
    "fp8 of Model Optimizer": ["weight", "weight_scale", "input_scale"],
    "mlx": ["weight", "scales", "biases"],
}
"""What such programs store instead of one `weight`."""


def pack(folder: Path, names: list[str]) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[EXPERT + "weight"]
        tensors.update({EXPERT + name: torch.zeros(4, 4, dtype=torch.uint8) for name in names})

    edit_tensors(folder, change)


@pytest.mark.parametrize("packing", PACKED)
def test_tensors_of_a_quantisation_that_the_configuration_does_not_state(single: Path, packing: str):
    pack(single, PACKED[packing])
    text = refusal(single, f"quantisation '{packing.partition(',')[0]}' is not supported", single)
    assert EXPERT in text and "config.json does not say" in text
    assert "Use the original checkpoint" in text


@pytest.mark.parametrize("packing", PACKED)
def test_a_plan_refuses_them_by_the_index_alone(single: Path, packing: str):
    (single / WEIGHTS).unlink()
    names = [EXPERT + name for name in PACKED[packing]]
    (single / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")}))
    with pytest.raises(CheckpointError, match="is not supported") as caught:
        plan_sizes(str(single))
    assert packing.partition(",")[0] in caught.value.what


def test_mxfp4_whose_configuration_was_lost(single: Path):
    edit_tensors(single, lambda tensors: tensors.update({"model.layers.0.mlp.experts.down_proj_blocks": torch.ones(1)}))
    refusal(single, "quantisation 'mxfp4' is not supported", single)


def test_what_the_configuration_states_comes_first(single: Path):
    pack(single, PACKED["gptq or awq"])
    edit_config(single, quantization_config={"quant_method": "awq", "bits": 2})
    refusal(single, "quantisation 'awq' is not supported", single / "config.json")


# GGUF


@pytest.mark.parametrize("with_config", [True, False])
def test_a_folder_without_safetensors_is_its_gguf_file(single: Path, with_config: bool):
    (single / WEIGHTS).unlink()
    file = single / "model-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    if not with_config:
        (single / "config.json").unlink()
    refusal(single, "is cut off in its header", file)
    with pytest.raises(CheckpointError, match="cut off in its header"):
        plan_sizes(str(single))


def test_a_gguf_file_that_is_none_is_refused(single: Path):
    file = single / "model.gguf"
    file.write_bytes(b"PK")
    refusal(file, "is not a GGUF file", file)


def test_gguf_beside_safetensors_is_nobody_s_business(single: Path):
    (single / "model.gguf").write_bytes(b"GGUF")
    assert survey_checkpoint(str(single)).experts == 16
