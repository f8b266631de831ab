"""Sound checkpoints, made once, and copies of them to be broken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from expertflow.tests.models.families import save_tiny


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    save_tiny("olmoe", root / "single")
    save_tiny("olmoe", root / "sharded", max_shard_size="60KB")
    return root


@pytest.fixture
def single(originals: Path, tmp_path: Path) -> Path:
    """A sound checkpoint in one file, to be broken."""
    return Path(shutil.copytree(originals / "single", tmp_path / "single"))


@pytest.fixture
def sharded(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "sharded", tmp_path / "sharded"))
