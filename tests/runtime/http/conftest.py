"""A server before the real scheduler with a fake compute: fast, and it can be held."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from expertflow.configs.schema import Config
from expertflow.tests.runtime.http.local_server import LocalServer
from expertflow.tests.runtime.openai.models import VOCABULARY, save_model
from expertflow.tests.scheduler.fake_engine import FakeEngine

QUEUE = 6


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    """With four rows and a queue of six."""
    config = Config(kv_memory="100KB", batch_size=4, queue_limit=QUEUE)
    with FakeEngine(save_model(tmp_path), config, vocabulary=VOCABULARY) as engine:
        yield engine


@pytest.fixture
def server(engine: FakeEngine) -> Iterator[LocalServer]:
    with LocalServer(engine.address) as server:
        yield server
