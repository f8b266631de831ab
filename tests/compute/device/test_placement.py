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
from expertflow.tests.models.families import FAMILIES
from expertflow.tests.models.outside import OUTSIDE

READ_BACK_BY_THE_LIBRARY = ("jetmoe",)
"""The library itself asks the device for numbers in every layer."""
ALL = tuple(family for family in FAMILIES if family not in READ_BACK_BY_THE_LIBRARY)
INSIDE = tuple(family for family in ALL if family not in OUTSIDE)
SLOW = pytest.mark.slow
CASES = [
    pytest.param("grouped,whole", ("qwen3_next", "gpt_oss"), id="whole"),
    pytest.param("grouped,whole", INSIDE, marks=SLOW, id="whole-all"),
    pytest.param("grouped", INSIDE, marks=SLOW, id="grouped-all"),
    pytest.param("single", ALL, marks=SLOW, id="single-all"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "families"), CASES)
def test_a_step_mixes_no_devices_and_the_host_waits_for_routes_alone(
    folders: Path, mode: str, families: Sequence[str]
) -> None:
    """Prefill with pads, decode, join, drop, split; only the routes are read back, and of whole layers not those."""
    script = Path(__file__).parent / "placement.py"
    paths = [str(folders / family) for family in families]
    ended = subprocess.run(
        [sys.executable, "-P", str(script), mode, *paths], capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
