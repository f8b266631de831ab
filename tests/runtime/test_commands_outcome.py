"""How commands end: exit codes, and errors a person can act on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from expertflow import __main__ as program
from expertflow import errors
from expertflow.runtime.commands import outcome
from expertflow.runtime.commands.base import Command


@dataclass(frozen=True, kw_only=True)
class Failing(Command):
    """Raises what it was given."""

    error: BaseException

    def run(self) -> int:
        raise self.error


@pytest.fixture(autouse=True)
def sigterm_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def ending(error: BaseException, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(program, "parse", lambda arguments: Failing(error=error))
    monkeypatch.setattr(sys, "argv", ["expertflow", "anything", *words])
    return program.main()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.CheckpointError("x"), 2),
        (errors.BudgetError("x"), 2),
        (errors.RequestError("x"), 2),
        (errors.BusyError("x"), 1),
        (errors.EngineError("x"), 1),
        (errors.ExpertFlowError("x"), 1),
        (ValueError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script tells by them whether its input was wrong or the run failed."""
    assert ending(error, monkeypatch) == code


def test_an_error_says_what_where_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback, or an error on stdout, helps nobody who runs a script."""
    ending(errors.UsageError("is too small", "expert_memory", "Give 1GB"), monkeypatch)
    told = capsys.readouterr()
    assert told.err == "error: is too small\nwhere: --expert-memory\nto do: Give 1GB\n"
    assert not told.out


def test_what_is_not_known_is_left_out() -> None:
    assert outcome.describe(errors.EngineError("broke", "stage compute")) == "error: broke\nwhere: stage compute"
    assert outcome.describe(errors.EngineError("broke")) == "error: broke"


def test_tracebacks_only_when_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ending(ValueError("oops"), monkeypatch)
    without = capsys.readouterr().err
    ending(ValueError("oops"), monkeypatch, "--debug")
    with_it = capsys.readouterr().err
    assert "Traceback" not in without and "oops" in without and "--debug" in without
    assert "Traceback" in with_it and "in run" in with_it


def test_sigterm_unwinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that simply died would orphan its engine in the middle of a step."""
    ending(errors.UsageError("x"), monkeypatch)
    with pytest.raises(SystemExit) as end:
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 143
