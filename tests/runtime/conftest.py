"""For tests of what is refused before anything is started."""

from __future__ import annotations

import subprocess

import pytest


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that starts one."""

    def refuse(words: list[str], *args: object, **options: object) -> None:
        pytest.fail(f"started {words}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
