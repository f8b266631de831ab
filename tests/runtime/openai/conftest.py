"""Models for the tests of translation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from expertflow.runtime.openai.model import ServedModel
from expertflow.runtime.text.conversation import read_conversation
from expertflow.tests.runtime.openai.models import HERMES, make_model, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    """A model whose chat template writes `role: content`."""
    yield from _opened(save_model(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def hermes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    """A model with tools and reasoning."""
    yield from _opened(save_model(tmp_path_factory.mktemp("hermes"), HERMES))


def _opened(folder: Path) -> Iterator[ServedModel]:
    model = make_model(folder)
    model.codec.render_chat(read_conversation("Hi"))  # starts the process that renders, before tests count processes
    yield model
    model.codec.close()
