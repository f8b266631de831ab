"""`expertflow train --kind gates`."""

from __future__ import annotations

from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.runtime.command_line.registry import parse
from expertflow.tests.gates.lessons import write_lessons


def test_gates_are_trained_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lessons(tmp_path / "trace")
    words = ["train", str(tmp_path / "trace"), "--kind", "gates", "--epochs", "2"]
    assert parse(words).run() == 0
    assert parse([*words, "--out", str(tmp_path / "gates")]).run() == 0
    assert (tmp_path / "gates").is_file()
    printed = capsys.readouterr().out
    assert printed.count("training: 2.0 of at most 2 epochs; all that were asked for") == 2
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["1", "2", "mean"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["no-folder.npz", "--kind", "gates"], "hidden states"),
        (["trace", "--kind", "gates", "--test", "x"], "no --test"),
        (["trace", "--kind", "gates", "--out", "no/such/folder/gates"], "does not exist"),
    ],
)
def test_what_gates_cannot_be_trained_on_is_refused(words: list[str], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse(["train", *words]).run()
