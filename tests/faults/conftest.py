"""Faults of files for the processes that a test starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from expertflow.tests.faults.shim import Faults, compile_shim


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def faults(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Every process that the test starts obeys these rules from now on."""
    made = Faults(library, tmp_path / "rules")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made
