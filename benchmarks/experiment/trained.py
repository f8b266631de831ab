"""Files that some systems need: gates are trained here once and kept."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from expertflow.runtime.demo.widened import cache_folder

CHARACTERS = 60_000
"""Of text that gates learn from."""


def trained_gates(model: Path, text: str) -> Path:
    """Gates of this model; trained on a trace of `text` at the first call (about a minute)."""
    file = cache_folder() / f"gates-{model.name}.safetensors"
    if not file.exists():
        with tempfile.TemporaryDirectory() as folder:
            _train_gates(model, text[:CHARACTERS], Path(folder), file)
    return file


def _train_gates(model: Path, text: str, folder: Path, file: Path) -> None:
    lessons, trace = folder / "lessons.txt", str(folder / "trace")
    lessons.write_text(text)
    asked = ["trace", trace, "--model", str(model), "--text", str(lessons), "--hidden", "1", "--expert-memory", "100%"]
    _expertflow(*asked)
    _expertflow("train", trace, "--kind", "gates", "--out", str(file))


def _expertflow(*arguments: str) -> None:
    """Its tables and progress go to stderr. Raises CalledProcessError."""
    subprocess.run([sys.executable, "-P", "-m", "expertflow", *arguments], stdout=sys.stderr, check=True)
