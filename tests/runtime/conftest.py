"""For tests of the runtime: nothing is started, or Ctrl-C is as in a terminal."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that starts one."""

    def refuse(words: list[str], *args: object, **options: object) -> None:
        pytest.fail(f"started {words}")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.fixture
def default_handler() -> Iterator[None]:
    """Ctrl-C as in a terminal: what a shell starts in the background ignores it, these tests too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
