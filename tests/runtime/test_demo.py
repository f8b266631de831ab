"""The parts of the demonstration; the whole of it runs in test_commands_processes."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from expertflow.configs.schema import Config
from expertflow.errors import BudgetError, EngineError, RequestError, UsageError
from expertflow.ipc.messages import Progress
from expertflow.runtime.client import Event
from expertflow.runtime.commands.demo import Demo
from expertflow.runtime.demo import widened
from expertflow.runtime.demo.run import Interruption
from expertflow.runtime.demo.view import Texts, make_view
from expertflow.runtime.verify import subprocess as checking
from expertflow.runtime.verify.report import Check
from expertflow.runtime.verify.subprocess import run_checks
from rich.console import Console


def test_texts_grow_by_events() -> None:
    texts = Texts(["a", "b"])
    texts.take(Event(1, [5, 6], " x"))
    grown = texts.take(Event(1, [7], " y", "length"))
    assert (grown.text, grown.tokens, grown.done, texts.tokens) == (" x y", 3, True, 3)
    with pytest.raises(RequestError, match="bad"):
        texts.take(Event(0, [], "", None, RequestError("bad")))


def test_an_interruption_kills_once_and_measures_the_longest_pause() -> None:
    """The pause is what the kill cost: it begins with the kill, not with the next token."""
    killed: list[str] = []
    interruption = Interruption("compute", 10, killed.append)
    for tokens, now_s in [(5, 0.0), (9, 50.0), (10, 51.0), (10, 51.5), (11, 58.0), (12, 58.1)]:
        interruption.take(tokens, now_s)
    assert killed == ["compute"]
    assert interruption.happened and interruption.pause_s == 6.5


def test_without_a_terminal_each_text_is_a_line_when_it_is_done() -> None:
    out = io.StringIO()
    texts = Texts(["Once", "There"])
    with make_view(Console(file=out, width=300)) as view:
        for event in (Event(0, [1], " upon\n"), Event(1, [1], " was", "stop"), Event(0, [2], " a time", "length")):
            view.show(texts, texts.take(event))
    assert out.getvalue() == "[1/2] There → was\n[2/2] Once → upon  a time\n"


def test_on_a_terminal_texts_are_seen_growing() -> None:
    out = io.StringIO()
    texts = Texts(["Once"])
    with make_view(Console(file=out, width=100, height=20, force_terminal=True)) as view:
        view.show(texts, texts.take(Event(0, [1], " upon")))
        view.notify("Killed something")
    assert "upon" in out.getvalue() and "Killed something" in out.getvalue()


def source_model(folder: Path) -> Path:
    source = folder / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes(b"x" * 100)
    return source


def test_the_widened_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making it again would cost every run ten seconds; keeping it for another model would run the wrong one."""
    made: list[Path] = []

    def fake_widen(source: Path, target: Path, factor: int) -> None:
        made.append(target)
        target.mkdir()

    monkeypatch.setattr(widened, "_widen", fake_widen)
    source, cache = source_model(tmp_path), tmp_path / "deep" / "cache"
    (cache / ".widened-64-abc.xyz").mkdir(parents=True)
    first = widened.widened_copy(source, cache)
    assert widened.widened_copy(source, cache) == first and made == [first]
    assert not (cache / ".widened-64-abc.xyz").exists()
    (source / "model.safetensors").write_bytes(b"y" * 100)
    assert widened.widened_copy(source, cache) != first and len(made) == 2


def test_widening_that_fails_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineError, match="could not be widened"):
        widened.widened_copy(source_model(tmp_path), tmp_path / "cache")
    assert "to do:" in capfd.readouterr().err


def test_no_room_for_the_widened_model(tmp_path: Path) -> None:
    """Found out after a gigabyte was written, it would have filled the user's disk."""
    source = source_model(tmp_path)
    with open(source / "model.safetensors", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(BudgetError, match="free"):
        widened._require_room(source, tmp_path, 2**30)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        widened.widened_copy(source_model(tmp_path), tmp_path / "file" / "cache")


def test_examples_that_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(widened, "_PACKAGE", tmp_path)
    with pytest.raises(UsageError, match="examples/prompts.txt: is missing") as refused:
        Demo().run()
    assert "--model" in refused.value.remedy


@pytest.mark.parametrize(("count", "words"), [(0, "at least 1"), (4, "3 prompts")])
def test_as_many_prompts_as_there_are(count: int, words: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a\nb\nc\n")
    with pytest.raises(UsageError, match=words):
        Demo(prompts=file, count=count).run()
    assert Demo(prompts=file, count=2)._chosen_prompts() == ["a", "b"]


def fake_verification(script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(checking.sys, "executable", str(program))


def test_checks_are_read_as_they_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checked = [Check(claim="a", holds=True, detail="d"), Check(claim="b", holds=False, detail="d")]
    said = [checked[0], Progress("verify", "steps again", 3, 8), checked[1]]
    lines = [msgspec.json.encode(line).decode() for line in said]
    fake_verification("".join(f"echo '{line}'; " for line in lines) + "exit 1", monkeypatch, tmp_path)
    told: list[Progress] = []
    checks = list(run_checks(tmp_path, Config.load(model="m"), told.append))
    assert checks == checked
    assert [progress for progress in told if progress.what != checking.STARTING] == said[1:2]
    assert (told[0].done, told[1].done) == (0, 1), "what starts also ends"


@pytest.mark.parametrize(
    ("script", "what"),
    [("echo broken >&2; exit 2", "broken"), ("echo bug >&2; exit 1", "bug"), ("kill -9 $$", "SIGKILL")],
)
def test_checks_that_could_not_be_made(script: str, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Silence would look like `yes`."""
    fake_verification(script, monkeypatch, tmp_path)
    with pytest.raises(Exception, match=what):
        list(run_checks(tmp_path, Config.load(model="m")))


def test_a_verification_is_ended_with_its_reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ctrl-C in the middle must not leave it running for minutes."""
    check = msgspec.json.encode(Check(claim="a", holds=True, detail="")).decode()
    fake_verification(f"echo '{check}'; exec sleep 60", monkeypatch, tmp_path)
    started: list[Any] = []
    real: Any = subprocess.Popen
    monkeypatch.setattr(checking.subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[0])
    checks = run_checks(tmp_path, Config.load(model="m"))
    assert next(checks).holds
    checks.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert started[0].returncode == -9
