"""Programs of Prometheus, run on what we write. A test that needs one skips where it is not installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

REMEDY = "install Prometheus with promtool: apt-get install prometheus"


def require_program(name: str) -> str:
    """Return the path of the program, or skip the test."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name}: {REMEDY}")
    return path


def run_promtool(*arguments: str | Path, text: bytes = b"") -> str:
    """Return what promtool says; fail if it finds a fault."""
    done = subprocess.run(
        [require_program("promtool"), *map(str, arguments)], input=text, capture_output=True, timeout=60, check=False
    )
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, output
    return output
