"""`expertflow quantize --mixed`: what it says, and what it refuses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from expertflow.errors import CheckpointError, UsageError
from expertflow.runtime.command_line.registry import parse
from expertflow.runtime.quality.copies import ComparedCopy, line_words
from expertflow.tests.models.families import save_tiny
from expertflow.tests.quantize.mixtures import Models, mixture, saved_models
from expertflow.workers.quantize.plan import CHANNEL, Precision
from expertflow.workers.quantize.writing import quantise_checkpoint, quantise_mixed
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return saved_models(tmp_path_factory.mktemp("mixed"))


def quantize(*words: Any) -> None:
    parse(["quantize", *map(str, words), "--group", "channel"]).run()


def test_what_cannot_be_mixed_is_refused_by_name(models: Models, tmp_path: Path) -> None:
    (source, trace), (other, others) = models["olmoe"], models["deepseek_v3"]
    small = tmp_path / "small"
    again = tmp_path / "again"
    save_tiny("olmoe", again, seed=1, dtype=torch.bfloat16)
    arrays = dict(np.load(trace))
    np.savez(tmp_path / "unknown.npz", **{name: array for name, array in arrays.items() if name != "model"})
    (tmp_path / "empty").mkdir()
    refused = {
        r"has 2 MoE layers of 8 experts, 2 a token; the model has 3 MoE layers of 16 experts, 4 a token": (
            source,
            others,
        ),
        r"is of another model \(fingerprint \w{32}, not \w{32}\)": (again, trace),
        r"is of another model \(fingerprint unknown": (source, tmp_path / "unknown.npz"),
        "holds no trace": (source, tmp_path / "empty"),
    }
    for words, (model, recording) in refused.items():
        with pytest.raises(UsageError, match=words):
            quantize(model, small, "--mixed", recording)
    assert other.is_dir() and not small.exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--mixed-share", "10%"], "10 % of 3 MoE layers are none of them"),
        (["--mixed-share", "100%"], "100 % of 3 MoE layers are all of them"),
        (["--mixed-share", "0%"], "a percentage must be above 0"),
        (["--mixed-share", "101%"], "a percentage must be above 0 and at most 100"),
        (["--mixed-share", "3GB"], "must be a percentage of the layers"),
        (["--bits", "8"], "cannot be mixed"),
        (["--beside", "nowhere"], "needs a text to compare copies on"),
        (["--text", __file__, "--beside", "nowhere"], "nowhere: is no model folder"),
    ],
)
def test_options_out_of_range_are_refused(words: list[str], reason: str, models: Models, tmp_path: Path) -> None:
    source, trace = models["olmoe"]
    with pytest.raises(UsageError, match=reason):
        quantize(source, tmp_path / "small", "--mixed", trace, *words)
    assert not list(tmp_path.iterdir())


def test_a_share_without_a_trace_is_refused(models: Models, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is for --mixed, and no trace is given"):
        quantize(models["olmoe"][0], tmp_path / "small", "--mixed-share", "40%")


def test_fused_experts_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    save_tiny("dbrx", tmp_path / "model", dtype=torch.bfloat16)
    with pytest.raises(UsageError, match="these experts cannot be quantised"):
        quantize(tmp_path / "model", tmp_path / "small", "--mixed", tmp_path / "no-trace")


@pytest.mark.slow
def test_the_command_says_what_a_copy_costs_beside_others(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    source, trace = models["olmoe"]
    for bits in (4, 8):
        quantise_checkpoint(source, tmp_path / f"bits{bits}", Precision(bits, CHANNEL), lambda *progress: None)
    monkeypatch.setattr("expertflow.runtime.commands.quantize.Quantize._token_ids", lambda self: list(range(3, 43)))
    words = ["--mixed", trace, "--mixed-share", "40%", "--text", __file__]
    quantize(source, tmp_path / "mixed", *words, "--beside", tmp_path / "bits4", tmp_path / "bits8")
    said = capsys.readouterr().out
    assert re.search(r"in 8 bits: layers \d of 3", said) and "39 tokens:" in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if re.match(r"(mixed|bits[48]) +\d", line)}
    sizes = [float(rows[name][1]) for name in ("bits4", "mixed", "bits8")]
    divergences = [float(rows[name][4]) for name in ("bits8", "mixed", "bits4")]
    assert sizes == sorted(sizes) and divergences == sorted(divergences) and "straight line" in said


class _Found:
    def __init__(self, mean_kl: float) -> None:
        self.mean_kl = mean_kl


@pytest.mark.parametrize(("own", "words"), [(0.039, "is better than"), (0.041, "does not beat")])
def test_a_mixture_is_held_against_a_straight_line(own: float, words: str) -> None:
    found: Any = _Found
    facts = [("mixed", 15, own), ("8", 20, 0.02), ("4", 10, 0.06)]
    copies = [ComparedCopy(name, size, found(mean_kl)) for name, size, mean_kl in facts]
    said = f"mixed {words} a straight line between 4 and 8, which has a mean KL of 0.04 at its size"
    assert line_words(copies) == said
    assert not line_words(copies[:2])


def test_missing_experts_are_refused_by_number(models: Models, tmp_path: Path) -> None:
    source, trace = models["olmoe"]
    figures = mixture(source, trace, 0.4)
    tensors = load_file(source / "model.safetensors")
    left = {name: value for name, value in tensors.items() if ".layers.1.mlp.experts.7." not in name}
    assert len(left) == len(tensors) - 3
    shutil.copytree(source, tmp_path / "model")
    save_file(left, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="layer 1 has an expert 7 in the trace that is not in the checkpoint"):
        quantise_mixed(tmp_path / "model", tmp_path / "small", CHANNEL, figures, lambda *progress: None)
    with pytest.raises(CheckpointError):
        quantize(tmp_path / "model", tmp_path / "other", "--mixed", trace)
