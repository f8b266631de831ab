"""`expertflow trace`: what it refuses before an engine starts, converting, and a run as a person starts it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from expertflow.errors import UsageError
from expertflow.runtime.command_line.registry import parse
from expertflow.runtime.commands.trace import Trace
from expertflow.runtime.prompt_sources.prompt_lines import cut_texts, read_texts
from expertflow.runtime.text.codec import TextCodec
from expertflow.tests.runtime.test_commands_processes import MODEL, ran
from expertflow.tests.traces.streams import step, write
from expertflow.workers.traces.reading import read_hidden, read_trace


def trace_command(folder: Path, *words: str) -> Trace:
    command = parse(["trace", str(folder), *words])
    assert isinstance(command, Trace)
    return command


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--prompt", "a", "--text", "b"], "both prompts and a text"),
        (["--text", "b", "--text-tokens", "0"], "at least 1"),
        (["--text", "b", "--ids"], "not for a text"),
        (["--text", "b", "--format", "xsum"], "cannot be read"),
        (["--trace", "elsewhere", "--prompt", "a"], "named twice"),
        (["--npz", "no/such/folder/x.npz", "--prompt", "a"], "no .npz file"),
        (["--npz", "x.json", "--prompt", "a"], "no .npz file"),
        ([], "no prompt is given"),
        (["--prompt", " "], "prompt is empty"),
        (["--text", "no such file"], "cannot be read"),
    ],
)
def test_wrong_input_is_refused_before_an_engine_starts(tmp_path: Path, words: list[str], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        trace_command(tmp_path / "trace", *words).run()


def test_a_trace_that_is_there_is_told_and_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "trace", step(0, [(0, 0), (0, 1), (1, 0)]), step(1, [(0, 2)]))
    assert trace_command(tmp_path / "trace", "--npz", str(tmp_path / "t.npz")).run() == 0
    said = capsys.readouterr().out
    assert "4, 25 % in decode steps" in said and "2 of 10 in each of 3 MoE layers" in said
    assert np.array_equal(read_trace(tmp_path / "t.npz").routes, read_trace(tmp_path / "trace").routes)


def test_prompts_never_go_into_a_trace_that_is_there(tmp_path: Path) -> None:
    write(tmp_path, step(0, [(0, 0)]))
    with pytest.raises(UsageError, match="holds a trace already"):
        trace_command(tmp_path, "--prompt", "a", "--model", "hub/m").run()


def test_a_text_is_cut_into_pieces_without_losing_a_token(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("In the beginning there was a river.\n" * 5)
    codec = TextCodec(str(MODEL))
    pieces = cut_texts(read_texts(file), codec, 7)
    prompts = [piece.prompt for piece in pieces if isinstance(piece.prompt, list)]
    assert [token for prompt in prompts for token in prompt] == codec.encode(file.read_text())
    assert {len(prompt) for prompt in prompts[:-1]} == {7} and pieces[1].where == f"{file}, token 8"


@pytest.mark.timeout(300)
def test_a_text_is_traced_by_prefill_alone(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("The king went to the river, and the people followed him. " * 8)
    words = ["--model", str(MODEL), "--text", str(tmp_path / "text"), "--text-tokens", "16", "--hidden", "0.5"]
    done = ran("trace", str(tmp_path / "trace"), *words)
    assert done.returncode == 0, done.stderr
    trace, hidden = read_hidden(tmp_path / "trace")
    ids = TextCodec(str(MODEL)).encode((tmp_path / "text").read_text())
    assert trace.token_ids.tolist() == ids and trace.sequences == -(-len(ids) // 16)
    assert trace.decoded is not None and not trace.decoded.any()
    assert 0 < len(hidden.tokens) < trace.tokens
    assert "0 % in decode steps" in done.stdout


@pytest.mark.timeout(300)
def test_pieces_longer_than_the_context_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("word " * 3000)
    words = ["--model", str(MODEL), "--text", str(tmp_path / "text"), "--text-tokens", "513"]
    done = ran("trace", str(tmp_path / "trace"), *words)
    assert done.returncode == 2 and "context of 512" in done.stderr and "--text-tokens" in done.stderr
