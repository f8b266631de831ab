"""Prompts from options and files: what cannot be used is named by its line."""

from __future__ import annotations

import io
import sys
from functools import partial
from pathlib import Path

import pytest
from expertflow.configs.schema import Config
from expertflow.errors import UsageError
from expertflow.runtime.commands.generate import Generate
from expertflow.runtime.commands.trace import Trace
from expertflow.runtime.commands.verify import Verify
from expertflow.runtime.prompt_sources.prompt_lines import STDIN, read_prompt_lines
from expertflow.runtime.prompt_sources.workloads import Format


def written(folder: Path, content: bytes) -> Path:
    file = folder / "prompts.txt"
    file.write_bytes(content)
    return file


def test_a_file_gives_a_prompt_a_line(tmp_path: Path) -> None:
    """Windows line ends, a byte order mark or a missing last line end must not become part of a prompt."""
    file = written(tmp_path, "\ufeffOnce upon\r\na naïve – test\nthe end".encode())
    lines = read_prompt_lines([], file, ids=False)
    assert [line.prompt for line in lines] == ["Once upon", "a naïve – test", "the end"]
    assert lines[1].where == f"{file}, line 2"


def test_spaces_of_a_prompt_stay(tmp_path: Path) -> None:
    """A leading space changes the tokens."""
    assert read_prompt_lines([], written(tmp_path, b" a \n"), ids=False)[0].prompt == " a "


@pytest.mark.parametrize("text", ["5 9 11", "5,9,11", "[5, 9, 11]"])
def test_ids_as_people_write_them(text: str) -> None:
    assert read_prompt_lines([text], None, ids=True)[0].prompt == [5, 9, 11]


def test_a_dash_reads_prompts_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    assert [line.prompt for line in read_prompt_lines([], STDIN, ids=False)] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        (b"fine\n\xff\xfe\n", 2, "not UTF-8"),
        (b"fine\n\nfine\n", 2, "empty"),
        (b"fine\n \t\n", 2, "empty"),
        (b"\n\nfine\n", 1, "empty"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, line: int, what: str) -> None:
    """In a file of ten thousand prompts nobody finds it otherwise."""
    file = written(tmp_path, content)
    with pytest.raises(UsageError, match=what) as refused:
        read_prompt_lines([], file, ids=False)
    assert refused.value.where == f"{file}, line {line}" and refused.value.remedy


EMPTY = [b"", b"\n", b" \r\n\n", b"\xef\xbb\xbf"]


@pytest.mark.parametrize("kind", ["lines", "alpaca", "wmt16", "xsum", "aime"])
def test_a_file_without_a_prompt(tmp_path: Path, kind: Format, no_process: None) -> None:
    """An engine would be started for nothing."""
    engine = Config(model=str(tmp_path))
    for content in EMPTY if kind == "lines" else [*EMPTY, b"[]", b" [ ]\n"]:
        file = written(tmp_path, content)
        for command in (Generate, Verify, partial(Trace, folder=tmp_path / "trace")):
            with pytest.raises(UsageError, match=r"is empty|holds no record") as refused:
                command(prompts=file, format=kind, engine=engine).run()
            assert refused.value.where == str(file) and refused.value.remedy


def test_a_prompt_that_is_not_utf_8() -> None:
    """As Python hands over bytes of a command line that it cannot decode."""
    with pytest.raises(UsageError, match="not UTF-8") as refused:
        read_prompt_lines(["fine", "caf\udce9"], None, ids=False)
    assert refused.value.where == "--prompt 2"


def test_stdin_without_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(UsageError, match="is empty") as refused:
        read_prompt_lines([], STDIN, ids=False)
    assert refused.value.where == "stdin"


@pytest.mark.parametrize("text", ["5 nine", "1.5", ""])
def test_a_text_that_is_no_list_of_ids_is_refused_by_its_option(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_prompt_lines(["1", text], None, ids=True)
    assert refused.value.where == "--prompt 2"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(UsageError, match="cannot be read") as refused:
            read_prompt_lines([], path, ids=False)
        assert refused.value.where == str(path)


@pytest.mark.parametrize(("texts", "file"), [([], None), (["a"], STDIN)])
def test_exactly_one_source(texts: list[str], file: Path | None) -> None:
    """With both, one would be dropped without a word."""
    with pytest.raises(UsageError, match="prompt"):
        read_prompt_lines(texts, file, ids=False)
