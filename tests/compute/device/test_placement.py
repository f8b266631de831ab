"""Every tensor of a step is where it belongs, tried on a device that has shapes and no numbers: where a tensor of the
CPU meets one of the device, torch refuses, and so it does where the host asks for a number.

So much can be known of a GPU where there is none.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.families import FAMILIES

OFTEN = ("mixtral", "qwen3_next", "gpt_oss")
READ_BACK_BY_THE_LIBRARY = ("jetmoe",)
"""The library itself asks the device for numbers in every layer."""
REST = tuple(family for family in FAMILIES if family not in OFTEN + READ_BACK_BY_THE_LIBRARY)


@pytest.mark.parametrize("families", [OFTEN, pytest.param(REST, marks=pytest.mark.slow)], ids=["often", "rest"])
def test_a_step_mixes_no_devices_and_the_host_waits_once_a_layer(folders: Path, families: Sequence[str]) -> None:
    """Prefill with pads, decode, join, drop, split; only the routes are read back."""
    script = Path(__file__).parent / "placement.py"
    paths = [str(folders / family) for family in families]
    ended = subprocess.run([sys.executable, "-P", str(script), *paths], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr[-3000:]
