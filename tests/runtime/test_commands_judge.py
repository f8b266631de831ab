"""`expertflow judge`: a stored predictor is judged by another trace as training would have judged it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from expertflow.errors import CheckpointError, UsageError
from expertflow.runtime.command_line.registry import parse
from expertflow.runtime.commands.judge import Judge
from expertflow.runtime.commands.train import PROMPTS, Train
from expertflow.tests.predictor.paths import made_up_trace
from expertflow.workers.predictor.judging.loading import _LOADERS
from expertflow.workers.traces.trace import Trace, write_npz

HALVES = 0.02
"""Weights are stored in half precision."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces, a path predictor, and what its training said of it."""
    folder = tmp_path_factory.mktemp("judge")
    write_npz(made_up_trace(sequences=20), folder / "trace.npz")
    write_npz(made_up_trace(sequences=5, seed=1), folder / "test.npz")
    train(folder, "path")
    return folder


def train(folder: Path, kind: Any) -> None:
    """Leave a predictor and the report of its training in `folder`."""
    files: dict[str, Any] = {"out": folder / f"{kind}.npz", "report": folder / f"{kind}.json", "kind": kind}
    Train(trace=folder / "trace.npz", test=folder / "test.npz", epochs=2, **files).run()


def judged(folder: Path, *words: str) -> dict[str, Any]:
    assert parse(["judge", *words, "--report", str(folder / "judged.json")]).run() == 0
    return json.loads((folder / "judged.json").read_text())


@pytest.mark.parametrize("kind", ["path", pytest.param("paper", marks=pytest.mark.slow)])
def test_the_figures_are_those_of_its_training(kind: str, folder: Path) -> None:
    """Another trace, the same sequences to learn from: whatever is compared must be the same."""
    if kind != "path":
        train(folder, kind)
    by_training = json.loads((folder / f"{kind}.json").read_text())
    write_npz(made_up_trace(sequences=20).split(0.2, 0)[0], folder / "learned.npz")
    words = [str(folder / f"{kind}.npz"), str(folder / "test.npz"), "--learned", str(folder / "learned.npz")]
    by_judge = judged(folder, *words)
    for name in ("table", "previous", "popularity"):
        assert by_judge[name] == by_training[name], name
    for name in ("decode", "still", "prefill"):
        assert by_judge[name]["recall"] == pytest.approx(by_training[name]["recall"], abs=HALVES)
        assert by_judge[name]["calibration_error"] == pytest.approx(by_training[name]["calibration_error"], abs=HALVES)
    same = ("tokens", "tokens_given", "prompt", "learned_from", "file_bytes")
    assert {name: by_judge[name] for name in same} == {name: by_training[name] for name in same}
    assert by_judge["training"] is None


def test_the_share_that_training_held_out_may_judge(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    Train(trace=folder / "trace.npz", out=tmp_path / "p.npz", report=report, epochs=1, held_out=0.3, seed=4).run()
    words = [str(tmp_path / "p.npz"), str(folder / "trace.npz"), "--held-out", "0.3", "--seed", "4"]
    by_training, by_judge = json.loads(report.read_text()), judged(tmp_path, *words)
    assert by_judge["table"] == by_training["table"] and by_judge["tokens"] == by_training["tokens"] == 6 * 14


def test_without_a_trace_to_learn_from_the_table_counts_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = judged(folder, str(folder / "path.npz"), str(folder / "test.npz"), "--tokens", "20")
    printed = capsys.readouterr().out
    assert "counted while judged" in printed and "14 of 70 tokens" in printed
    assert "path, decode" in printed and "token table" in printed and "training" not in printed
    assert (figures["learned_from"], figures["decode"]["tokens"]) == (0, 14)


def wider(trace: Trace) -> Trace:
    return replace(trace, expert_count=16)


def of_ids(trace: Trace) -> Trace:
    return replace(trace, vocabulary=None)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [(wider, CheckpointError, "was trained for 3 layers of 8 experts"), (of_ids, UsageError, "by their strings")],
)
def test_a_trace_that_does_not_suit_is_refused(
    change: Any, kind: type[Exception], words: str, folder: Path, tmp_path: Path
) -> None:
    write_npz(change(made_up_trace(sequences=3)), tmp_path / "other.npz")
    with pytest.raises(kind, match=words):
        Judge(predictor=folder / "path.npz", trace=tmp_path / "other.npz").run()


def test_what_is_no_predictor_is_refused(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "headless.npz", a=np.zeros(3))
    np.savez(tmp_path / "torn.npz", header=np.frombuffer(b"{]", dtype=np.uint8))
    np.savez(tmp_path / "gates.npz", header=np.frombuffer(b'{"kind": "gates"}', dtype=np.uint8))
    refused = {"headless": "no header", "torn": "cannot be read", "gates": "of kind 'gates'", "missing": "cannot be"}
    for name, words in refused.items():
        with pytest.raises(UsageError, match=words) as error:
            Judge(predictor=tmp_path / f"{name}.npz", trace=folder / "test.npz").run()
        assert error.value.where == str(tmp_path / f"{name}.npz") and error.value.remedy


def test_every_kind_that_is_stored_can_be_judged() -> None:
    assert {*_LOADERS} == {*PROMPTS}
