"""A Python process that shows where it stands if it hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest

PATIENCE_S = 80


def run_python(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, output and errors of a child; a child that hangs fails the test with the stacks of its threads."""
    child = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", *arguments],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            output, errors = child.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGABRT)
            pytest.fail(f"the child hangs: {child.communicate(timeout=10)[1]}")
    return child.returncode, output, errors
