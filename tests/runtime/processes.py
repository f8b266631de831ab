"""Commands as real processes, as from a terminal."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import expertflow

MODEL = Path(expertflow.__file__).parent / "examples" / "model"
PATIENCE_S = 300.0


def command(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "expertflow", *words]


def ran(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=PATIENCE_S, check=False, **options)


def heed_ctrl_c() -> None:
    """What a shell starts in the background ignores it, and so would all that pytest starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    """As from a terminal: what a shell starts in the background ignores Ctrl-C, and so would all that pytest starts."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command(*words), stdout=pipe, stderr=pipe, text=True, preexec_fn=heed_ctrl_c) as process:
        try:
            yield process
        finally:
            process.kill()


def read_when_there(file: Path, process: subprocess.Popen[str]) -> str:
    deadline_s = time.monotonic() + PATIENCE_S
    while not file.exists():
        assert process.poll() is None and time.monotonic() < deadline_s, process.communicate()
        time.sleep(0.1)
    return file.read_text(errors="replace").strip()  # a recording is no text
