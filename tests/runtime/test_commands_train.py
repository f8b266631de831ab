"""`expertflow train`: a predictor from a trace, judged by sequences that it did not learn from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from expertflow import Config
from expertflow.errors import UsageError
from expertflow.ipc.messages import PredictStep
from expertflow.runtime.commands.train import Train
from expertflow.runtime.replay.source import open_source
from expertflow.tests.predictor.paths import VOCABULARY, made_up_trace
from expertflow.workers.predictor.base.model_shape import ModelShape
from expertflow.workers.predictor.base.vocabulary import align_vocabularies
from expertflow.workers.predictor.path.file import read_path
from expertflow.workers.predictor.registry import make_forecaster
from expertflow.workers.traces.routing import UNROUTED
from expertflow.workers.traces.trace import Trace, read_npz, write_npz

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str = "trace.npz", trace: Trace | None = None) -> Path:
        write_npz(trace or made_up_trace(sequences=20), tmp_path / name)
        return tmp_path / name

    return written


def test_a_predictor_and_its_figures_are_written(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "p.npz", tmp_path / "r.json"
    assert Train(trace=write(), out=out, report=report, epochs=2).run() == 0
    figures = json.loads(report.read_text())
    assert figures["file_bytes"] == out.stat().st_size
    assert figures["decode"]["tokens"] == 4 * 14
    assert read_path(out).header.figures["decode_recall"] == pytest.approx(figures["decode"]["recall"], abs=1e-4)
    printed = capsys.readouterr().out
    for words in ("path, decode", "path, prefill", "token table", "previous token", "popularity", "batch 8", "ms"):
        assert words in printed
    doubled = next(line for line in printed.splitlines() if line.startswith("path, decode, 2k each"))
    assert doubled.split()[-1] == "–", "four sequences make no batch of eight"


@pytest.mark.parametrize(
    ("options", "reason", "words"),
    [
        ({"minutes": 1e-6}, "time", "of at most 10 epochs; ended by the clock (--minutes 1e-06)"),
        ({"epochs": 1}, "epochs", "1.0 of at most 1 epochs; all that were asked for"),
    ],
)
def test_how_the_training_ended_is_said(
    options: dict[str, Any], reason: str, words: str, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody saw that the clock ended it after a fraction of the epochs."""
    report = tmp_path / "r.json"
    Train(trace=write(), report=report, **options).run()
    assert words in capsys.readouterr().out
    end = json.loads(report.read_text())["training"]
    assert end["reason"] == reason and end["steps"] >= 1 and end["epochs"] > 0


def test_that_only_the_first_sequences_judge_is_said(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, report = write("test.npz", made_up_trace(sequences=5, seed=1)), tmp_path / "r.json"
    Train(trace=write(), test=test, epochs=1, tokens=30, report=report).run()
    printed = capsys.readouterr().out
    assert "28 of 70 tokens, the first sequences (--tokens 0: all)" in printed
    assert "made from 224 tokens" in printed
    assert json.loads(report.read_text())["decode"]["tokens"] == 28
    Train(trace=write(), test=test, epochs=1, tokens=0, report=report).run()
    assert json.loads(report.read_text())["decode"]["tokens"] == 70
    assert "first sequences" not in capsys.readouterr().out


def test_another_trace_may_judge(write: Write, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    test = write("test.npz", made_up_trace(sequences=3, seed=1))
    Train(trace=write(), held_out=0, test=test, report=report, epochs=1).run()
    assert json.loads(report.read_text())["decode"]["tokens"] == 3 * 14


def test_a_trace_of_another_model_cannot_judge(write: Write) -> None:
    other = made_up_trace(sequences=3)
    wider = Trace(routes=other.routes, token_ids=other.token_ids, offsets=other.offsets, expert_count=16)
    with pytest.raises(UsageError, match="another model"):
        Train(trace=write(), test=write("test.npz", wider)).run()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"held_out": 1.0}, "held_out: must be from 0 to below 1"),
        ({"held_out": 0.0}, "held_out: nothing is left to judge on"),
        ({"minutes": 0.0}, "minutes: must be above 0"),
        ({"threads": 0}, "threads: must be from 1 to 1,024"),
        ({"out": Path("nowhere/at/all.npz")}, "the folder to write into does not exist"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Train(trace=Path("missing"), **options).run()  # type: ignore[arg-type]


def test_a_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read as a trace"):
        Train(trace=tmp_path / "missing").run()


def test_tokens_are_told_by_their_strings_across_traces(write: Write, tmp_path: Path) -> None:
    """Numbers are places in each trace's own vocabulary, and another trace has other strings."""
    trace, report = made_up_trace(sequences=20), tmp_path / "r.json"
    few = trace.take(np.array([0]))
    assert len(set(few.token_ids.tolist())) < len(VOCABULARY)
    Train(trace=write(), held_out=0, test=write("few.npz", few), report=report, epochs=1).run()
    figures = json.loads(report.read_text())
    assert figures["table"]["recall"] > figures["popularity"]["recall"] + 0.05


def test_strings_that_were_not_learned_follow_behind() -> None:
    trace = Trace(
        routes=np.zeros((3, 1, 1), np.uint16),
        token_ids=np.array([1, 0, 2]),
        offsets=np.array([0, 3]),
        expert_count=8,
        vocabulary=["b", "c", "new"],
    )
    turned = align_vocabularies(trace, ["a", "b", "c"])
    assert turned.token_ids.tolist() == [2, 1, 3]
    assert turned.vocabulary == ["a", "b", "c", "new"]


def test_an_interrupted_judgement_leaves_the_predictor(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("expertflow.workers.predictor.judging.report.compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Train(trace=write(), out=tmp_path / "kept.npz", epochs=1).run()
    assert read_path(tmp_path / "kept.npz").header.figures == {}


@pytest.mark.parametrize("sequences", [1, 2])
def test_a_trace_of_too_few_sequences_is_refused(write: Write, sequences: int) -> None:
    with pytest.raises(UsageError, match=f"has {sequences} sequences"):
        Train(trace=write("short.npz", made_up_trace(sequences=sequences))).run()


@pytest.mark.parametrize("kind", ["path", "paper"])
def test_nothing_to_learn_from_is_said(write: Write, tmp_path: Path, kind: str) -> None:
    test = write("other.npz", made_up_trace(sequences=4))
    with pytest.raises(UsageError, match="none is left to learn from"):
        Train(trace=write("one.npz", made_up_trace(sequences=1)), held_out=0, test=test, kind=kind).run()  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06 no zip"])
def test_a_broken_file_is_no_trace(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.npz").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as a trace"):
        Train(trace=tmp_path / "broken.npz").run()


@pytest.mark.parametrize("name", ["out", "report"])
def test_a_folder_to_write_to_is_refused_first(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        Train(trace=Path("missing"), **{name: tmp_path}).run()  # type: ignore[arg-type]


def with_encoder(trace: Trace) -> Trace:
    """The same sequences as outputs, each after a prompt of two tokens that sees two layers of its own."""
    lengths = np.diff(trace.offsets)
    begins = np.repeat(trace.offsets[:-1], 2)
    routes = np.insert(trace.routes, begins, UNROUTED, axis=0)
    own = np.full((len(routes), 2, trace.top_k), UNROUTED, dtype=np.uint16)
    own[routes[:, 0, 0] == UNROUTED] = [[1, 2], [3, 4]]
    return replace(
        trace,
        routes=np.concatenate([own, routes], axis=1),
        token_ids=np.insert(trace.token_ids, begins, 0),
        offsets=np.concatenate([[0], np.cumsum(lengths + 2)]),
        encoder_layers=2,
    )


def test_of_a_model_with_an_encoder_the_decoder_is_learned(write: Write, tmp_path: Path) -> None:
    """The file is then the decoder's, beside a table for the encoder; it is what its layers alone would have given."""
    plain, out = made_up_trace(sequences=20), tmp_path / "p.npz"
    whole, report = write("whole.npz", with_encoder(plain)), tmp_path / "r.json"
    assert np.array_equal(read_npz(whole).decoder_part().routes, plain.routes)
    Train(trace=whole, out=out, report=report, epochs=1).run()
    assert json.loads(report.read_text())["decode"]["tokens"] == 4 * 14
    layers = plain.layers + 2
    shape = ModelShape(layers=layers, experts=plain.expert_count, top_k=plain.top_k, encoder_layers=2)
    forecaster = make_forecaster(Config.load(model="m", predictor="path", predictor_file=str(out)), shape)
    assert forecaster is not None
    coming = PredictStep(step=1, token_ids=[1, 1], rows=[0, 0], positions=[0, 0], sources=1)
    assert forecaster.forecast(coming).shape == (layers, plain.expert_count)


def test_what_makes_no_sense_with_an_encoder_is_refused(write: Write) -> None:
    whole = write("whole.npz", with_encoder(made_up_trace(sequences=20)))
    with pytest.raises(UsageError, match="as one text, which this model does not read"):
        Train(trace=whole, kind="paper").run()
    with pytest.raises(UsageError, match="takes every token to go through every layer"):
        open_source(whole, 1, 0)
