"""Widening gives a bigger model that computes the same function."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from expertflow.errors import CheckpointError, UsageError
from expertflow.workers.checkpoint import shards
from expertflow.workers.checkpoint.widen import widen
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, OlmoeConfig, OlmoeForCausalLM

pytestmark = pytest.mark.usefixtures("one_thread")

BUILT_IN = Path(__file__).parents[2] / "examples" / "model"
TOKENS = torch.arange(300, 364).view(2, 32)
SHAPE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,
}


@torch.no_grad()
def outputs(folder: Path):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model(TOKENS, output_router_logits=True)


def assert_same_function(source: Path, wide: Path, top_k: int):
    ours, theirs = outputs(wide), outputs(source)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-4 * theirs.logits.abs().max().item())
    for mine, reference in zip(ours.router_logits, theirs.router_logits, strict=True):
        assert torch.equal(mine.topk(top_k).indices, reference.topk(top_k).indices)


def olmoe(folder: Path) -> Path:
    torch.manual_seed(0)
    OlmoeForCausalLM(OlmoeConfig(num_experts=4, **SHAPE)).bfloat16().save_pretrained(folder)
    return folder


def test_the_built_in_model_computes_the_same_when_widened(tmp_path: Path):
    widen(BUILT_IN, tmp_path / "wide", 4)
    assert_same_function(BUILT_IN, tmp_path / "wide", top_k=4)
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["moe_intermediate_size"] == 4 * 76
    for name in ("tokenizer.json", "predictor.npz"):
        assert (tmp_path / "wide" / name).read_bytes() == (BUILT_IN / name).read_bytes()


def test_a_model_that_counts_neurons_as_intermediate_size_and_spans_shards(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 40_000)
    source = olmoe(tmp_path / "source")
    widen(source, tmp_path / "wide", 8)
    assert len(list((tmp_path / "wide").glob("*.safetensors"))) > 2
    assert_same_function(source, tmp_path / "wide", top_k=2)
    widen(tmp_path / "wide", tmp_path / "wider", 2)  # shards are read, too
    assert_same_function(source, tmp_path / "wider", top_k=2)


def test_progress_counts_the_bytes_written(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    widen(BUILT_IN, tmp_path / "wide", 2, lambda what, done, total: seen.append((done, total)))
    done, total = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == total[0] == total[-1]


@pytest.mark.parametrize("factor", [-2, 0, 3, 12])
def test_a_factor_that_is_no_power_of_two_is_refused(tmp_path: Path, factor: int):
    with pytest.raises(UsageError, match="power of two"):
        widen(BUILT_IN, tmp_path / "wide", factor)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_configuration_that_cannot_be_read_is_refused(tmp_path: Path, text: str):
    shutil.copytree(BUILT_IN, tmp_path / "source")
    (tmp_path / "source" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="is not"):
        widen(tmp_path / "source", tmp_path / "wide", 2)


def test_a_copy_that_the_disk_cannot_hold_is_refused_before_a_byte_is_written(tmp_path: Path):
    with pytest.raises(UsageError, match=r"the copy takes .* GB, but only"):
        widen(BUILT_IN, tmp_path / "wide", 2**40)
    assert not list(tmp_path.iterdir())


def test_an_existing_destination_is_refused_and_kept(tmp_path: Path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        widen(BUILT_IN, tmp_path, 2)
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_experts_named_otherwise_are_refused(tmp_path: Path):
    MixtralForCausalLM(MixtralConfig(num_local_experts=4, **SHAPE)).save_pretrained(tmp_path / "mixtral")
    with pytest.raises(UsageError, match="cannot be widened"):
        widen(tmp_path / "mixtral", tmp_path / "wide", 2)


def test_half_precision_is_refused_because_dividing_it_rounds(tmp_path: Path):
    source = olmoe(tmp_path / "source")
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16).save_pretrained(tmp_path / "half")
    with pytest.raises(UsageError, match="float16"):
        widen(tmp_path / "half", tmp_path / "wide", 2)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path):
    def interrupt(what: str, done_bytes: int, total_bytes: int) -> None:
        if done_bytes > total_bytes // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        widen(BUILT_IN, tmp_path / "wide", 4, interrupt)
    assert list(tmp_path.iterdir()) == []
