"""FP8 experts of a layer in one tensor, their scales in another: `gate_up_proj` and `gate_up_proj_scale_inv`.

transformers computes with them on GPUs and dequantises no such tensors as a whole; the reference is its function that
dequantises one, in a checkpoint that is plain.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from expertflow.errors import CheckpointError
from expertflow.tests.loader.arenas import all_experts, assert_experts_equal, fill, make_arena
from expertflow.tests.models.published import Tensors, quantise_blocks, rewrite, state_quantisation
from expertflow.tests.registry.tiny import save_tiny
from expertflow.tests.registry.trial import TOLERANCE, live, reference
from expertflow.tests.surveyor.skeletons import NO_FEED, assert_skeleton_equal
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.experts.routing import RoutingCollector
from expertflow.workers.compute.skeleton import load_model
from expertflow.workers.loader.transfer import expert_sources
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, conversion_mapping
from transformers.core_model_loading import Transpose, WeightConverter
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

Quantise = Callable[[str, torch.Tensor], Tensors]
FUSED = ("experts.gate_up_proj", "experts.down_proj", "experts.w13_weight", "experts.w2_weight")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def save_fused(model_type: str, folder: Path, quantise: Quantise, stated: dict[str, Any]) -> None:
    """A model in bfloat16, its routed experts quantised tensor by tensor."""
    save_tiny(model_type, folder, dtype=torch.bfloat16)
    rewrite(folder, lambda name, tensor: quantise(name, tensor.float()) if name.endswith(FUSED) else {name: tensor})
    state_quantisation(folder, {"quant_method": "fp8", "activation_scheme": "dynamic"} | stated)


def in_blocks(block: tuple[int, int]) -> Quantise:
    """As FP8Experts of transformers has them: scales [experts, blocks of rows, blocks of columns]."""

    def quantise(name: str, tensor: torch.Tensor) -> Tensors:
        weights, scales = zip(*(quantise_blocks(matrix, block) for matrix in tensor), strict=True)
        return {name: torch.stack(weights), f"{name}_scale_inv": torch.stack(scales)}

    return quantise


def one_an_expert(name: str, tensor: torch.Tensor) -> Tensors:
    """As Mistral Small 4 has them: [experts, 1, 1], bfloat16."""
    scales = (tensor.abs().amax(dim=(1, 2), keepdim=True) / 448).bfloat16()
    return {name: (tensor / scales.float()).to(torch.float8_e4m3fn), f"{name}_scale_inv": scales}


def exponents(name: str, tensor: torch.Tensor) -> Tensors:
    """As Inkling 2 has them (MXFP8): a byte for each group of a row, named without `_inv`."""
    groups = tensor.unflatten(-1, (-1, 16))
    powers = groups.abs().amax(-1).log2().ceil() - 8
    weights = (groups / powers.exp2()[..., None]).flatten(-2).to(torch.float8_e4m3fn)
    return {name: weights, f"{name}_scale": (powers + 127).to(torch.uint8)}


KINDS: dict[str, tuple[str, Quantise, dict[str, Any]]] = {
    "blocks": ("hy_v4", in_blocks((8, 8)), {"weight_block_size": [8, 8]}),
    "one scale": ("hy_v4", one_an_expert, {"weight_block_size": None, "activation_scheme": "static"}),
    "alternating rows": ("inkling2_text", exponents, {"weight_block_size": [1, 16], "scale_fmt": "ue8m0"}),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fused")
    for kind, (model_type, quantise, stated) in KINDS.items():
        save_fused(model_type, root / kind, quantise, stated)
    return root


def plain_copy(folder: Path, to: Path, dtype: torch.dtype) -> Path:
    """Dequantised by the library's function for one tensor, and saved as a checkpoint that was never quantised."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    del config["quantization_config"]
    (to / "config.json").write_text(json.dumps(config))
    stored = {name: tensor for file in sorted(to.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    for file in to.glob("*.safetensors*"):
        file.unlink()
    one = Fp8Dequantize(SimpleNamespace())._dequantize_one
    scaled = {name: stored.get(f"{name}_scale_inv", stored.get(f"{name}_scale")) for name in stored}
    plain = {
        name: tensor if scaled[name] is None else one(tensor, scaled[name], dtype)  # pyright: ignore[reportArgumentType]
        for name, tensor in stored.items()
        if not any(name == f"{own}{end}" for own in stored for end in ("_scale_inv", "_scale"))
    }
    save_file(plain, to / "model.safetensors", {"format": "pt"})
    return to


def check(folder: Path, plain: Path, dtype: str) -> Survey:
    """Experts and skeleton are those of the plain copy, bit for bit."""
    survey = survey_checkpoint(str(folder), dtype=dtype)
    memory = make_arena(survey.expert_count * survey.stride_bytes)
    assert not any(transfer.error for transfer in fill(survey, all_experts(survey), memory))
    reference = AutoModelForCausalLM.from_pretrained(plain_copy(folder, plain, DTYPES[dtype]), dtype=dtype).eval()
    assert_experts_equal(survey, all_experts(survey), memory, reference.state_dict())
    assert_skeleton_equal(survey, load_model(survey, NO_FEED, RoutingCollector()), reference)
    return survey


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_fused_experts_are_dequantised_as_the_library_does(checkpoints: Path, tmp_path: Path, kind: str, dtype: str):
    survey = check(checkpoints / kind, tmp_path / "plain", dtype)
    assert [piece.operation for piece in survey.pieces][1] == "cast"
    assert all(piece.scales for piece in survey.pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_of_a_hundred_bytes_give_the_same_experts(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.setattr(expert_sources, "CHUNK_BYTES", 100)
    check(checkpoints / kind, tmp_path / "plain", "bfloat16")


def test_transposed_experts_have_transposed_scales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As Qwen3-VL-MoE stores them: both as the file has them."""
    conversion_mapping.get_checkpoint_conversion_mapping("hy_v4")
    names = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    rules = [WeightConverter(name, name, operations=[Transpose(1, 2)]) for name in names]
    monkeypatch.setitem(conversion_mapping._checkpoint_conversion_mapping_cache, "hy_v4", rules)  # pyright: ignore[reportArgumentType]
    save_fused("hy_v4", tmp_path / "turned", in_blocks((8, 4)), {"weight_block_size": [8, 4]})
    survey = check(tmp_path / "turned", tmp_path / "plain", "bfloat16")
    assert {piece.operation for piece in survey.pieces} == {"transpose"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_they_compute_what_the_plain_model_does(checkpoints: Path, tmp_path: Path, kind: str):
    survey = survey_checkpoint(str(checkpoints / kind), dtype="float32")
    resident, few = live(survey, survey.expert_count), live(survey, 3)
    plain = reference(plain_copy(checkpoints / kind, tmp_path / "plain", torch.float32))
    assert resident.error(plain) <= TOLERANCE and not resident.other_tokens(plain)
    assert few.digests == resident.digests


# What does not fit is refused


def refused(folder: Path, change: Callable[[str, torch.Tensor], Tensors]) -> str:
    rewrite(folder, change)
    with pytest.raises(CheckpointError) as caught:
        survey_checkpoint(str(folder))
    return str(caught.value)


@pytest.fixture
def blocks(checkpoints: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints / "blocks", tmp_path / "copy"))


def test_scales_that_are_missing(blocks: Path):
    text = refused(blocks, lambda name, tensor: {} if name.endswith("_scale_inv") else {name: tensor})
    assert "F8_E4M3 without scales" in text


def test_weights_that_are_missing(blocks: Path):
    text = refused(blocks, lambda name, tensor: {} if name.endswith("1.mlp.experts.down_proj") else {name: tensor})
    assert "down_proj is missing" in text


def test_scales_of_fewer_experts(blocks: Path):
    text = refused(blocks, lambda name, tensor: {name: tensor[1:] if name.endswith("_scale_inv") else tensor})
    assert "scales of" in text and "experts" in text


def test_rows_that_alternate_need_exponents_of_their_own(checkpoints: Path, tmp_path: Path):
    """A block of rows would have some of the gate and some of the up projection under one scale."""
    folder = Path(shutil.copytree(checkpoints / "alternating rows", tmp_path / "copy"))
    text = refused(folder, lambda name, tensor: {name: tensor[:, ::2] if name.endswith("w13_weight_scale") else tensor})
    assert "alternate" in text
