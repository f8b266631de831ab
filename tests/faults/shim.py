"""The library that makes reads and writes fail, compiled once, and the rules that it obeys."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("shim.c")
EIO, ENOSPC, SHORT, DELAY = "5", "28", "short", "delay"
ALWAYS = -1


class Faults:
    """Rules for processes that are started with `environment`. They may change while the processes run."""

    def __init__(self, library: Path, rules: Path) -> None:
        self._rules = rules
        self.environment: Mapping[str, str] = {"LD_PRELOAD": str(library), "EF_FAULTS": str(rules)}
        self.clear()

    def clear(self) -> None:
        """Let everything pass."""
        self._replace("")

    def add(self, operation: str, action: str, path: str, first: int = 0, count: int = ALWAYS) -> None:
        """Let calls on files with `path` in theirs meet `action`: after `first` calls, so often in each process."""
        self._replace(f"{self._rules.read_text()}{operation} {action} {first} {count} {path}\n")

    def _replace(self, text: str) -> None:
        new = self._rules.with_suffix(".new")
        new.write_text(text)
        new.rename(self._rules)


def compile_shim(folder: Path) -> Path:
    """Return the library; skips the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = folder / "shim.so"
    words = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(words, check=True)
    return library
