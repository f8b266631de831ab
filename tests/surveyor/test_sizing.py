"""What `plan` says of published models from config.json alone, against counts that owe nothing to our code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import torch
from expertflow.configs.schema import Config
from expertflow.errors import CheckpointError
from expertflow.runtime.commands.plan import Plan
from expertflow.runtime.engine import budgets
from expertflow.runtime.plan.fit import Fit, Needs, budget_fit, model_needs
from expertflow.tests.models.families import save_tiny, tiny_config
from expertflow.workers.checkpoint.survey import ModelSizes, SlotTensor
from expertflow.workers.surveyor.entry import plan_sizes
from expertflow.workers.surveyor.sizing import model_sizes, stored_bytes
from expertflow.workers.surveyor.surveyor import survey_folder
from transformers import AutoConfig, AutoModelForCausalLM

CONFIGURATIONS = Path(__file__).parents[1] / "data" / "configurations"
"""config.json of published models, as far as sizes and architecture depend on it."""
BF16_BYTES = 2


class Published(NamedTuple):
    """What model cards and papers say. Expert and KV numbers are worked out by hand from the papers' dimensions."""

    parameters: float
    """As published, so many digits as published."""
    tolerance: float
    layers: int
    experts: int
    top_k: int
    expert_values: int
    """Of one expert: gate, up and down projections, and biases."""
    kv_values: int
    """Of one position, all layers that keep every position."""
    window_values: int = 0
    """Of one row's sliding windows, whatever its length."""


PUBLISHED = {
    "mixtral-8x7b": Published(46.7e9, 0.05e9, 32, 8, 2, 3 * 4096 * 14336, 32 * 2 * 8 * 128),
    "qwen3-30b-a3b": Published(30.5e9, 0.05e9, 48, 128, 8, 3 * 2048 * 768, 48 * 2 * 4 * 128),
    "deepseek-v2-lite": Published(15.7e9, 0.05e9, 26, 64, 6, 3 * 2048 * 1408, 27 * (512 + 64)),
    "gpt-oss-20b": Published(
        20.9e9, 0.05e9, 24, 32, 4, 3 * 2880 * 2880 + 3 * 2880, 12 * 2 * 8 * 64, 12 * 128 * 2 * 8 * 64
    ),
    "glm-4.5-air": Published(106e9, 1e9, 45, 128, 8, 3 * 4096 * 1408, 46 * 2 * 8 * 128),
}


@pytest.fixture(scope="module", params=PUBLISHED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def sizes(name: str) -> ModelSizes:
    return model_sizes(CONFIGURATIONS / name)


def test_the_parts_are_all_that_transformers_counts(name: str, sizes: ModelSizes):
    """A part left out, or counted twice, would make `plan` promise memory that is not there."""
    config = AutoConfig.from_pretrained(CONFIGURATIONS / name, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    assert parameters == pytest.approx(PUBLISHED[name].parameters, abs=PUBLISHED[name].tolerance)
    in_float32 = [tensor for key, tensor in model.named_buffers() if "inv_freq" in key or "correction_bias" in key]
    expected = parameters * BF16_BYTES + sum(tensor.numel() * 4 for tensor in in_float32)
    needs = model_needs(sizes)
    assert sizes.dtype == "bfloat16"
    assert needs.skeleton_bytes + needs.experts_bytes == expected


def test_every_part_is_what_the_papers_dimensions_give(name: str, sizes: ModelSizes):
    published = PUBLISHED[name]
    assert (sizes.layers, sizes.experts, sizes.top_k) == published[2:5]
    assert sizes.expert_bytes == published.expert_values * BF16_BYTES
    assert sizes.rows.kv_bytes_per_position == published.kv_values * BF16_BYTES
    spare = sizes.rows.kv_bytes_per_row - published.window_values * BF16_BYTES
    assert 0 <= spare <= 32 * sizes.rows.kv_bytes_per_position, "a cache grows in chunks, which is all that may be over"
    guards = sizes.stride_bytes - sizes.expert_bytes
    assert 0 < guards <= 3 * 4096 * len(sizes.tensors)


def test_the_documented_numbers(sizes: ModelSizes):
    """docs/hub.md has a row for each of these models."""
    rows = (CONFIGURATIONS.parents[2] / "docs" / "hub.md").read_text().splitlines()
    numbers = (sizes.expert_bytes, sizes.stride_bytes, sizes.expert_bytes * sizes.expert_count, sizes.skeleton_bytes)
    kept = (sizes.rows.kv_bytes_per_position, sizes.rows.kv_bytes_per_row)
    assert any(row.endswith(" |") and _cells(row)[3:9] == [f"{each:,}" for each in numbers + kept] for row in rows)


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.parametrize("budget_bytes", [500 * 10**6, 7 * 10**9])
def test_slots_of_a_budget(sizes: ModelSizes, budget_bytes: int):
    fit = budget_fit(sizes, Config.load(model="m", expert_memory=f"{budget_bytes}B"), 2**40)
    assert fit.slots == min(budget_bytes // sizes.stride_bytes, sizes.layers * sizes.experts)
    assert fit.slots_bytes == fit.slots * sizes.stride_bytes <= budget_bytes


def test_mxfp4_is_a_quarter_in_the_files():
    """The published files of gpt-oss-20b take 13.8 GB; slots hold what is computed with, bfloat16."""
    sizes = model_sizes(CONFIGURATIONS / "gpt-oss-20b")
    files_bytes = sizes.skeleton_bytes + sizes.stored_expert_bytes * sizes.expert_count
    assert files_bytes == pytest.approx(13.76e9, rel=0.001)
    assert sizes.expert_bytes / sizes.stored_expert_bytes == pytest.approx(16 / 4.25, rel=0.01)


def test_fp8_is_half_in_the_files():
    """A value a byte, and a scale of four bytes for each block, which the configuration may size."""
    matrix, bias = (
        SlotTensor("a", [768, 2048], "bfloat16", 2 * 768 * 2048, 0),
        SlotTensor("b", [768], "bfloat16", 1536, 0),
    )
    assert stored_bytes({"quant_method": "fp8"}, [matrix, bias]) == 768 * 2048 + 4 * 6 * 16 + 1536
    blocks = {"quant_method": "fp8", "weight_block_size": [256, 1000]}
    assert stored_bytes(blocks, [matrix]) == 768 * 2048 + 4 * 3 * 3
    assert stored_bytes({"quant_method": "mxfp8"}, [matrix, bias]) == 768 * 2048 * 33 // 32 + 1536
    assert stored_bytes({"quant_method": "made-up"}, [matrix]) == 0, "what nobody knows must not be guessed"


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "gpt_oss", "qwen3_next"])
def test_the_configuration_says_what_the_files_say(family: str, tmp_path: Path):
    """Else a plan made before the download would not hold after it."""
    save_tiny(family, tmp_path / "whole", dtype=torch.bfloat16)
    (tmp_path / "bare").mkdir()
    shutil.copy(tmp_path / "whole" / "config.json", tmp_path / "bare")
    survey = plan_sizes(str(tmp_path / "whole"))
    assert survey == survey_folder(tmp_path / "whole"), "with the weights here, they are what counts"
    sizes = plan_sizes(str(tmp_path / "bare"))
    assert (sizes.weights_here, survey.weights_here) == (False, True)
    known = {"folder": "", "checkpoint_bytes": 0, "weights_here": False}
    both = [{key: getattr(each, key) for key in ModelSizes.__struct_fields__} | known for each in (sizes, survey)]
    assert both[0] == both[1]


@pytest.mark.parametrize("has_weights", [True, False])
def test_config_json_is_read_once(has_weights: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One file read several times may change in between; no generation_config.json stands in for it here."""
    save_tiny("olmoe", tmp_path / "whole")
    (tmp_path / "whole" / "generation_config.json").unlink()
    (tmp_path / "bare").mkdir()
    shutil.copy(tmp_path / "whole" / "config.json", tmp_path / "bare")
    read: list[Path] = []
    read_bytes = Path.read_bytes

    def noted(file: Path) -> bytes:
        read.append(file)
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", noted)
    if has_weights:
        survey_folder(tmp_path / "whole")
    else:
        model_sizes(tmp_path / "bare")
    assert [file.name for file in read].count("config.json") == 1


def test_half_a_checkpoint_is_not_planned_as_if_it_were_none(tmp_path: Path):
    """Whoever has an index and not its shards should hear of it from `plan`."""
    shutil.copy(CONFIGURATIONS / "mixtral-8x7b" / "config.json", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(CheckpointError, match="names the shard"):
        plan_sizes(str(tmp_path))


@pytest.mark.parametrize(
    ("quantised", "words"),
    [
        ({"quant_method": "gptq"}, "'gptq' is not supported"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "two"),
    ],
)
def test_what_an_engine_refuses_is_not_planned(tmp_path: Path, quantised: dict[str, object], words: str):
    config = json.loads((CONFIGURATIONS / "qwen3-30b-a3b" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    with pytest.raises(CheckpointError, match=words):
        plan_sizes(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok is 0"),
        ({"max_position_embeddings": -1}, "max_position_embeddings is -1"),
        ({"moe_intermediate_size": 0}, "experts have no values"),
    ],
)
def test_a_configuration_of_no_model_is_refused(tmp_path: Path, changes: dict[str, int], words: str):
    """It ended in tracebacks, or in a plan that says that it fits."""
    tiny_config("qwen3_moe", **changes).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        plan_sizes(str(tmp_path))


@pytest.mark.parametrize(("experts_in", "slot_bytes"), [("auto", 13_236_480), ("dequantised", 49_783_680)])
def test_a_plan_without_weights(
    experts_in: str, slot_bytes: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The whole way: command, surveyor's process, answer. auto packs where the CPU has kernels for packed experts."""
    monkeypatch.setattr(budgets, "usable_variants", lambda: {"avx512_dots": 0})
    model = str(CONFIGURATIONS / "gpt-oss-20b")
    config = Config.load(model=model, expert_memory="1GB", kv_memory="1MB", experts_in=experts_in)
    Plan(engine=config, json=True).run()

    class Answer(msgspec.Struct):
        model: Needs
        budgets: Fit

    answer = msgspec.json.decode(capsys.readouterr().out, type=Answer)
    assert (answer.model.weights_here, answer.model.checkpoint_bytes) == (False, 0)
    assert answer.model.expert_bytes == slot_bytes and answer.model.stored_expert_bytes == 13_236_480
    assert answer.budgets.slots == 10**9 // answer.model.slot_bytes
