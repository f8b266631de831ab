"""Files of random bytes, and chunks small enough for several in each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from expertflow.tests.loader.layouts import SIZES_BYTES, SMALL_CHUNK_BYTES, write_random
from expertflow.workers.loader.transfer import files


@pytest.fixture(scope="module")
def small_chunks() -> Iterator[None]:
    """Chunks small enough for several in a small file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", SMALL_CHUNK_BYTES)
        patch.setattr(files, "READ_BYTES", SMALL_CHUNK_BYTES)
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, small_chunks: None) -> list[Path]:
    return write_random(tmp_path_factory.mktemp("files"), *SIZES_BYTES)
