"""Completion in a real bash, installed by the very lines of the documentation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import expertflow
import pytest

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
PAGE = Path(expertflow.__file__).parent / "docs" / "command-line.md"
COMPLETE = """
read -r _ _ function _ <<< "$(complete -p expertflow)"
while IFS= read -r line; do
  read -ra COMP_WORDS <<< "$line"
  [[ $line == *" " ]] && COMP_WORDS+=("")
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
  "$function"
  echo "${COMPREPLY[*]}"
done
"""
"""Completes each line of stdin as if Tab were pressed at its end; prints the choices, a line each."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the documented lines have run, and in which a file lies."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "prompts.txt").touch()
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("    ") and "expertflow.bash" in line]
    assert len(lines) == 2
    run_bash(textwrap.dedent("\n".join(lines)), folder)
    return folder


def run_bash(script: str, folder: Path, typed: str = "") -> list[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", "--norc", "--noprofile", "-e", "-c", script]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, input=typed, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_commands_options_choices_and_files_are_completed(installed: Path) -> None:
    typed = {
        "expertflow ser": "serve",
        "expertflow serve --expert-m": "--expert-memory",
        "expertflow serve --tier ": "disk host",
        "expertflow generate --prompts pro": "prompts.txt",
        "expertflow train --kin": "--kind",
        "expertflow serve --expert-n": "",
    }
    completed = run_bash(f"source ./expertflow.bash\n{COMPLETE}", installed, "".join(f"{line}\n" for line in typed))
    assert dict(zip(typed, completed, strict=True)) == typed
