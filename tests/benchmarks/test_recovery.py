"""The times of recovery: one strike of each kind, a reload and an end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from expertflow.benchmarks.recovery import __main__ as recovery


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_each_stage_is_struck_and_comes_back(tmp_path: Path) -> None:
    """In a process of its own: tests fork their stages, whose command lines do not name them."""
    command = [sys.executable, "-P", "-m", "expertflow.benchmarks.recovery", "--repeats", "1"]
    subprocess.run([*command, "--out", str(tmp_path / "out.json")], check=True)
    figures = json.loads((tmp_path / "out.json").read_text())
    assert len(figures["strikes"]) == 12 and len(figures["ends"]) == 5
    for name, [times] in figures["strike_times"].items():
        noticed_s, ready_s, pause_s = times
        assert 0 < noticed_s <= ready_s and pause_s > 0
        if name.endswith("SIGSTOP"):
            assert noticed_s >= recovery.HANG_TIMEOUT_S / 2, "a stage that stands still is not dead at once"
