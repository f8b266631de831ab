"""Quantised checkpoints: what arrives in slots and what the skeleton becomes is the library's dequantised model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from expertflow.tests.checkpoint.broken import edit_config
from expertflow.tests.loader.arenas import all_experts, assert_experts_equal, fill, make_arena
from expertflow.tests.models.published import library_model, rewrite, save_block_fp8, save_mxfp4, state_quantisation
from expertflow.tests.surveyor.skeletons import NO_FEED, assert_skeleton_equal
from expertflow.workers.checkpoint.survey import Piece, Survey
from expertflow.workers.compute.experts.routing import RoutingCollector
from expertflow.workers.compute.skeleton import load_model
from expertflow.workers.loader.transfer import expert_sources
from expertflow.workers.loader.transfer.host_store import fill_store
from expertflow.workers.surveyor.sizing import model_sizes
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from safetensors.torch import load_file

KINDS = ("deepseek_v3", "qwen3_moe", "mixtral", "sharded", "gpt_oss")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    for family in ("deepseek_v3", "qwen3_moe", "mixtral"):
        save_block_fp8(family, root / family)
    save_block_fp8("qwen3_moe", root / "sharded", max_shard_size="40KB")
    save_mxfp4(root / "gpt_oss")
    return root


def filled(survey: Survey, threads: int = 2) -> np.ndarray:
    memory = make_arena(survey.expert_count * survey.stride_bytes)
    assert not any(transfer.error for transfer in fill(survey, all_experts(survey), memory, threads=threads))
    return memory


def check(folder: Path, dtype: str) -> Survey:
    """Experts and skeleton, bit for bit."""
    survey = survey_checkpoint(str(folder), dtype=dtype)
    reference = library_model(folder, dtype)
    assert_experts_equal(survey, all_experts(survey), filled(survey), reference.state_dict())
    assert_skeleton_equal(survey, load_model(survey, NO_FEED, RoutingCollector()), reference)
    return survey


@pytest.mark.parametrize("dtype", ["auto", "float32", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_experts_and_skeleton_are_the_librarys(checkpoints: Path, kind: str, dtype: str):
    survey = check(checkpoints / kind, dtype)
    assert survey.dtype == ("bfloat16" if dtype == "auto" else dtype)
    assert any(piece.scales for piece in survey.pieces)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("chunk_bytes", [200, 1000])
def test_in_chunks_whose_edges_are_no_edges_of_blocks(
    checkpoints: Path, kind: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    survey = survey_checkpoint(str(checkpoints / kind))
    whole = filled(survey)
    monkeypatch.setattr(expert_sources, "CHUNK_BYTES", chunk_bytes)
    assert np.array_equal(filled(survey, threads=3), whole)


LARGE: dict[str, Any] = {"num_hidden_layers": 2, "num_experts": 4, "num_local_experts": 4}


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_large_experts_are_read_past_the_page_cache(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Several chunks an expert, at offsets that no block of the disk knows."""
    monkeypatch.setattr(expert_sources, "CHUNK_BYTES", 30_000)
    if kind == "gpt_oss":
        save_mxfp4(tmp_path, hidden_size=256, intermediate_size=256, **LARGE)
    else:
        save_block_fp8(kind, tmp_path, (128, 128), hidden_size=256, moe_intermediate_size=384, **LARGE)
    survey = check(tmp_path, "auto")
    assert survey.block_bytes == 4096
    source = expert_sources.FileSource(survey)
    chunks = source.chunks(make_arena(survey.stride_bytes), 0, 0, 0)
    source.close()
    assert len(chunks) > len(survey.pieces)


def test_the_budget_counts_what_lies_in_slots(checkpoints: Path):
    """Slots hold bfloat16, whatever the files do: twice and nearly four times their size."""
    for kind, factor in (("qwen3_moe", 2), ("gpt_oss", 4)):
        survey = survey_checkpoint(str(checkpoints / kind))
        stored = sum(piece.source_bytes for piece in survey.pieces if piece.scales)
        scaled = sum(piece.count_bytes for piece in survey.pieces if piece.scales)
        assert scaled == factor * stored
        assert survey.expert_bytes == sum(piece.count_bytes for piece in survey.pieces)
        sizes = model_sizes(checkpoints / kind)  # before anything is downloaded
        assert (sizes.stride_bytes, sizes.skeleton_bytes) == (survey.stride_bytes, survey.skeleton_bytes)
        assert sizes.stored_expert_bytes == survey.stored_expert_bytes


def test_scales_do_not_say_what_to_compute_in(tmp_path: Path):
    """Where config.json names no dtype: their float32 comes first in the file."""
    save_block_fp8("qwen3_moe", tmp_path)
    edit_config(tmp_path, dtype=None)
    assert next(iter(load_file(tmp_path / "model.safetensors").values())).dtype == torch.float32
    assert survey_checkpoint(str(tmp_path)).dtype == "bfloat16"


def test_the_host_store_holds_them_dequantised(checkpoints: Path):
    for kind in ("qwen3_moe", "gpt_oss"):
        survey = survey_checkpoint(str(checkpoints / kind))
        store = make_arena(survey.expert_count * survey.stride_bytes)
        fill_store(expert_sources.FileSource(survey), store, survey, 2, lambda what, done, total: None)
        memory = make_arena(store.size)
        fill(survey, all_experts(survey), memory, expert_sources.StoreSource(store, survey))
        assert_experts_equal(survey, all_experts(survey), memory, library_model(checkpoints / kind).state_dict())


# Mutants: the comparisons above see what they must


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("shift", [(1, 0), (0, 1)])
def test_a_scale_off_by_one_shows(
    checkpoints: Path, kind: str, shift: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    """One block further down, or to the right."""
    convert = expert_sources.make_dequantiser

    def shifted(piece: Piece, dtype: str) -> Any:
        made = convert(piece, dtype)

        def wrong(raw: np.ndarray, scales: np.ndarray, target: np.ndarray, piece: Piece, rows: range) -> None:
            assert piece.scales is not None
            grid = scales.reshape(-1, piece.scales.row_bytes)
            by = piece.scales.row_bytes // piece.scales.grid[1]
            moved = np.roll(grid, (shift[0], shift[1] * by), axis=(0, 1))
            made.convert(raw, np.ascontiguousarray(moved).reshape(-1), target, piece, rows)

        return SimpleNamespace(convert=wrong)

    monkeypatch.setattr(expert_sources, "make_dequantiser", shifted)
    with pytest.raises(AssertionError, match="expert"):
        check(checkpoints / kind, "auto")


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_the_scales_of_another_expert_show(checkpoints: Path, kind: str):
    survey = survey_checkpoint(str(checkpoints / kind))
    places = survey.place_table().copy()
    places[:, :, len(survey.pieces) :] = np.roll(places[:, :, len(survey.pieces) :], 1, axis=1)
    wrong = msgspec.structs.replace(survey, places=places.tobytes())
    reference = library_model(checkpoints / kind).state_dict()
    with pytest.raises(AssertionError, match="expert"):
        assert_experts_equal(wrong, all_experts(wrong), filled(wrong), reference)


# What the library cannot load


def test_a_last_block_that_is_smaller(tmp_path: Path):
    """DeepSeek-V3's kv_a_proj_with_mqa has 576 rows in blocks of 128: the library refuses it."""
    save_block_fp8("deepseek_v3", tmp_path, (20, 20))
    stored = load_file(tmp_path / "model.safetensors")
    survey = survey_checkpoint(str(tmp_path))
    ours = load_model(survey, NO_FEED, RoutingCollector()).state_dict()
    scaled = [name for name in ours if f"{name}_scale_inv" in stored]
    assert any(size % 20 for name in scaled for size in ours[name].shape)
    for name in scaled:
        assert torch.equal(ours[name], spread_out(stored, name)), name
    reference = {
        f"{module}.{tensor.name}": torch.stack([_fused(stored, module, tensor.name, e) for e in range(survey.experts)])
        for module in survey.module_names
        for tensor in survey.tensors
    }
    assert_experts_equal(survey, all_experts(survey), filled(survey), reference)


def spread_out(stored: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """A stored matrix times its scales, each repeated over its block of 20 by 20."""
    weight = stored[name].float()
    scales = stored[f"{name}_scale_inv"].repeat_interleave(20, 0).repeat_interleave(20, 1)
    return (weight * scales[: weight.shape[0], : weight.shape[1]]).bfloat16()


def _fused(stored: dict[str, torch.Tensor], module: str, name: str, expert: int) -> torch.Tensor:
    parts = ["gate_proj", "up_proj"] if name == "gate_up_proj" else ["down_proj"]
    return torch.cat([spread_out(stored, f"{module}.{expert}.{part}.weight") for part in parts])


def test_one_scale_for_a_whole_matrix(tmp_path: Path):
    """As Mistral stores them, with a scale of the activations that nothing needs."""
    save_block_fp8("mixtral", tmp_path, (999, 999))

    def squeeze(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if not name.endswith("_scale_inv"):
            return {name: tensor}
        return {name: tensor[0, 0], name.replace("weight_scale_inv", "activation_scale"): torch.tensor(3.0)}

    rewrite(tmp_path, squeeze)
    state_quantisation(tmp_path, {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None})
    check(tmp_path, "auto")


def test_exponents_as_scales(tmp_path: Path):
    """MXFP8: a byte for each 32 values of a row."""
    save_block_fp8("qwen3_moe", tmp_path, (1, 16), hidden_size=64)

    def to_exponents(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: (tensor.log2().round() + 127).to(torch.uint8) if name.endswith("_scale_inv") else tensor}

    rewrite(tmp_path, to_exponents)
    state_quantisation(tmp_path, {"quant_method": "mxfp8", "weight_block_size": [1, 16]})
    survey = check(tmp_path, "auto")
    assert {piece.scales.dtype for piece in survey.pieces if piece.scales} == {"U8"}
    assert model_sizes(tmp_path).stored_expert_bytes == survey.stored_expert_bytes > survey.expert_bytes // 2


def test_four_bit_experts_in_an_fp8_checkpoint(tmp_path: Path):
    """As DeepSeek-V4 stores them: two values a byte in int8, an exponent for each 32, not turned; the rest in FP8."""
    save_block_fp8("qwen3_moe", tmp_path, hidden_size=64)

    def pack(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if ".experts." not in name or name.endswith("_scale_inv"):
            return {} if ".experts." in name else {name: tensor}
        rows, columns = tensor.shape
        generator = torch.Generator().manual_seed(len(name) + rows)
        packed = torch.randint(-128, 128, (rows, columns // 2), dtype=torch.int8, generator=generator)
        scales = torch.randint(110, 130, (rows, columns // 32), dtype=torch.uint8, generator=generator)
        return {name: packed, f"{name}_scale_inv": scales.view(torch.float8_e8m0fnu)}

    rewrite(tmp_path, pack)
    survey = check(tmp_path, "auto")
    assert {piece.scales.block[1] for piece in survey.pieces if piece.scales} == {32}
