"""Tiny models on a busy machine: one thread is many times faster than two that wait for each other."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="module")
def single_threaded(one_thread: None) -> None:
    """For all tests of this folder."""
