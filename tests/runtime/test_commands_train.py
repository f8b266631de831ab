"""`expertflow train`: a predictor from a trace, judged by sequences that it did not learn from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from expertflow.errors import UsageError
from expertflow.runtime.commands.train import Train
from expertflow.tests.predictor.paths import VOCABULARY, made_up_trace
from expertflow.workers.predictor.judging.aligning import aligned
from expertflow.workers.predictor.path.file import read_path
from expertflow.workers.traces.trace import Trace, write_npz

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
        ({"held_out": 0.0}, "held_out: nothing is left to judge by"),
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
    turned = aligned(trace, ["a", "b", "c"])
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
