"""`expertflow study`: which options reach a study, and what a user hears where there is no study."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.runtime.command_line.registry import parse
from expertflow.runtime.commands.study import STUDIES, Study, study_module


def test_only_given_options_reach_the_study() -> None:
    """A default of the command would override that of the study."""
    command = parse(["study", "pope", "--quick", "--out", "a folder", "--seeds", "2", "--minutes", "1.5"])
    assert isinstance(command, Study)
    assert command.words() == ["--quick", "--out", "a folder", "--seeds", "2", "--minutes", "1.5"]
    assert Study(study="routing", skip_bad=True).words() == ["--skip-bad"]
    assert Study(study="recommend", data=Path("rows")).words() == ["--data", "rows"]


def test_a_study_that_is_not_installed_is_named() -> None:
    with pytest.raises(UsageError, match="^study tides: is not part of the installed package. Run it in a clone"):
        study_module("tides")


def test_a_library_that_a_study_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wanted_library", None)
    monkeypatch.setattr(sys, "meta_path", [_Importing("wanted_library"), *sys.meta_path])
    with pytest.raises(UsageError, match="needs wanted_library.*studies"):
        study_module("tides")


class _Importing:
    """A finder that imports another module where a study is looked for, as a study's own code would."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, *_: object) -> None:
        if name.startswith(STUDIES):
            __import__(self.module)
