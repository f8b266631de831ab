"""The C kernels for processors that this machine has not, compiled for them and run under emulation where there is one.

On Debian: apt install gcc-aarch64-linux-gnu qemu-user. Nothing free emulates AVX-512 and AMX; on a machine without them
those variants are named as not run (test_native.py).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import expertflow
import pytest

ROOT = Path(expertflow.__file__).parent
SOURCES = ROOT / "workers" / "kernels" / "native"
DRIVER = ROOT / "tests" / "kernels" / "drive.c"


def drive(compiler: list[str], runner: list[str], folder: Path) -> str:
    """Compile the kernels with a driver that checks them, run it, and return what it says."""
    program = str(folder / "drive")
    sources = [str(DRIVER), *map(str, SOURCES.glob("*.c"))]
    subprocess.run([*compiler, "-O0", "-w", "-I", str(SOURCES), "-o", program, *sources, "-lm"], check=True)
    return subprocess.run([*runner, program], check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="not run: no C compiler")
def test_the_driver_on_this_processor(tmp_path: Path) -> None:
    assert "checked" in drive(["cc"], [], tmp_path)


def test_neon(tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("not run: NEON needs aarch64-linux-gnu-gcc and qemu-aarch64 here")
    assert drive([compiler, "-static"], [emulator], tmp_path) == "neon checked\n"
