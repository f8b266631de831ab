"""Quantised copies: codes are those that compressed-tensors reads, files open in transformers, runs can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from expertflow.errors import CheckpointError, UsageError
from expertflow.tests.loader.arenas import fill, make_arena
from expertflow.workers.checkpoint import shards
from expertflow.workers.checkpoint.layout import ReadPlan, tensor_positions
from expertflow.workers.loader.transfer.files import chunk_spans, join_spans, scatters
from expertflow.workers.quantize.plan import CHANNEL, Precision, QuantisePlan
from expertflow.workers.quantize.rounding import dequantise, pack, quantise
from expertflow.workers.quantize.writing import quantise_checkpoint
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, OlmoeConfig, OlmoeForCausalLM

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.arange(300, 364).view(2, 32)
SHAPE = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "num_experts": 4,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("olmoe")
    torch.manual_seed(0)
    OlmoeForCausalLM(OlmoeConfig(**SHAPE)).bfloat16().save_pretrained(folder)
    (folder / "predictor.npz").write_bytes(b"kept")
    return folder


def quantised(source: Path, destination: Path, bits: int = 4, group: int = 32) -> Path:
    quantise_checkpoint(source, destination, Precision(bits, group), lambda *progress: None)
    return destination


def decompressed(packed: dict[str, torch.Tensor], bits: int, group: int) -> torch.Tensor:
    """The matrix that compressed-tensors makes of stored tensors."""
    weights: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": True}
    weights |= {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    scheme = QuantizationScheme.model_validate({"targets": ["Linear"], "weights": weights, "format": "pack-quantized"})
    return _compressor().decompress(packed, scheme)["weight"]


def _compressor() -> Any:
    return BaseCompressor.get_value_from_registry("pack-quantized")


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    group=st.sampled_from([8, 32, 20]),
    bits=st.sampled_from([4, 8]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
    seed=st.integers(0, 1000),
)
def test_codes_are_those_that_the_library_reads(
    rows: int, groups: int, group: int, bits: int, dtype: torch.dtype, scale: float, seed: int
) -> None:
    """Its values are ours bit for bit, and as near as with the scale that reaches the largest value."""
    torch.manual_seed(seed)
    weight = (torch.randn(rows, groups * group) * scale).to(dtype)
    weight[0, :group] = 0
    codes, scales = quantise(weight, bits, group)
    packed = {"weight_packed": pack(codes, bits), "weight_scale": scales, "weight_shape": torch.tensor(weight.shape)}
    read = decompressed(packed, bits, group)
    assert torch.equal(read, dequantise(codes, scales)) and not read[0, :group].any()
    plain = weight.float().view(rows, groups, group)
    step = plain.abs().amax(-1, keepdim=True) / ((1 << (bits - 1)) - 0.5)
    nearest = ((plain / step.clamp_min(1e-30)).round() * step - plain).square().sum()
    rounding = (torch.finfo(dtype).eps * plain).square().sum()
    assert (read.float().view(plain.shape) - plain).square().sum() <= 1.1 * nearest + rounding


@pytest.mark.parametrize(("bits", "group", "bound"), [(4, 32, 0.12), (4, CHANNEL, 0.14), (8, 32, 0.008)])
def test_the_copy_opens_in_transformers_with_the_dequantised_weights(
    source: Path, tmp_path: Path, bits: int, group: int, bound: float
) -> None:
    folder = quantised(source, tmp_path / "small", bits, group)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, experts_implementation="eager")
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    stored = load_file(folder / "model-00001-of-00001.safetensors")
    for layer in range(2):
        experts, before = model.model.layers[layer].mlp.experts, original.model.layers[layer].mlp.experts
        name = f"model.layers.{layer}.mlp.experts.3.down_proj.weight_"
        own = {part: stored[name + part.removeprefix("weight_")] for part in ("weight_packed", "weight_scale")}
        shape = torch.tensor(experts.down_proj[3].shape)
        assert torch.equal(experts.down_proj[3], decompressed({**own, "weight_shape": shape}, bits, group))
        error = (experts.gate_up_proj - before.gate_up_proj).float().norm() / before.gate_up_proj.float().norm()
        assert 0 < error < bound
    assert torch.equal(model.lm_head.weight, original.lm_head.weight)
    with torch.no_grad():
        assert torch.isfinite(model(IDS).logits).all()


def test_an_expert_of_the_copy_comes_with_one_read_past_the_page_cache(tmp_path: Path) -> None:
    """Its tensors are whole blocks here: all land in their places of the slot, none goes through a buffer."""
    torch.manual_seed(1)
    sizes = {**SHAPE, "hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 1, "num_experts": 12}
    OlmoeForCausalLM(OlmoeConfig(**sizes)).bfloat16().save_pretrained(tmp_path / "large")
    folder = quantised(tmp_path / "large", tmp_path / "small")
    survey = survey_checkpoint(str(folder), dtype="bfloat16", experts_in="packed").lay_out(1, "disk")
    plan, behind = ReadPlan(survey), 0
    for expert in range(12):  # 10 comes behind 9, not behind 1
        spans = [span for run in plan.runs(0, expert) for span in chunk_spans(run, 0, guarded=True)]
        assert scatters(spans) and join_spans(spans) == [spans]
        assert spans[0].offset_bytes == behind or not expert
        behind = spans[-1].end_bytes
    memory = make_arena(12 * survey.stride_bytes)
    assert not any(transfer.error for transfer in fill(survey, {expert: (0, expert) for expert in range(12)}, memory))
    stored = load_file(folder / "model-00001-of-00001.safetensors")
    start = int(tensor_positions(survey)[0, 10, 2])
    codes = stored["model.layers.0.mlp.experts.10.down_proj.weight_packed"].view(torch.uint8).numpy().reshape(-1)
    assert np.array_equal(memory[10 * survey.stride_bytes + start :][: codes.size], codes)


def test_an_expert_is_in_one_file(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 10_000)
    folder = quantised(source, tmp_path / "small")
    files = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    parts = {name: file for name, file in files.items() if name.endswith(("weight_packed", "weight_scale"))}
    experts = {(name.rsplit(".", 2)[0], file) for name, file in parts.items()}
    assert len(parts) == 2 * 3 * 8 and len(experts) == 8 and len(set(parts.values())) > 2


def test_a_run_that_was_broken_off_goes_on_and_gives_the_same_files(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 30_000)
    whole = tmp_path / "whole"
    errors = quantise_checkpoint(source, whole, Precision(4, 32), lambda *progress: None)
    written: list[int] = []

    def break_off(what: str, done: int, total: int) -> None:
        written.append(done)
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantise_checkpoint(source, tmp_path / "broken", Precision(4, 32), break_off)
    unfinished = tmp_path / ".broken.unfinished"
    kept = {file: file.stat().st_mtime_ns for file in unfinished.glob("*.safetensors")}
    assert kept and not (tmp_path / "broken").exists()
    again = quantise_checkpoint(source, tmp_path / "broken", Precision(4, 32), lambda *progress: None)
    assert again == pytest.approx(errors) and set(errors) == {0, 1} and not unfinished.exists()
    for file in whole.iterdir():
        assert (tmp_path / "broken" / file.name).read_bytes() == file.read_bytes()
    assert {(tmp_path / "broken" / file.name).stat().st_mtime_ns for file in kept} == set(kept.values())


def test_an_unfinished_copy_of_another_precision_is_begun_anew(source: Path, tmp_path: Path) -> None:
    def break_off(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantise_checkpoint(source, tmp_path / "small", Precision(4, 32), break_off)
    folder = quantised(source, tmp_path / "small", 8, 32)
    weights = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]["experts"]
    assert weights["weights"]["num_bits"] == 8 and (folder / "predictor.npz").read_bytes() == b"kept"


def test_what_cannot_be_quantised_is_refused_by_name(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rows of 32 values, which are no whole groups of 128"):
        QuantisePlan(source, Precision(4, 128))
    small = quantised(source, tmp_path / "small")
    with pytest.raises(UsageError, match="they are quantised already"):
        QuantisePlan(small, Precision(4, 32))
    with pytest.raises(UsageError, match="the destination exists"):
        quantised(source, small)
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    tensors[name][3, 5] = torch.nan
    (tmp_path / "nan").mkdir()
    save_file(tensors, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "nan" / "config.json").write_bytes((source / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.2\.up_proj\.weight: holds values"):
        quantised(tmp_path / "nan", tmp_path / "of-nan")
    assert not (tmp_path / "of-nan").exists()
