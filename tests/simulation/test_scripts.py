"""Faults that the simulation has found in the engine, as scripts: they do not come back.

A script was shrunk from a broken history. The mended engine leaves its road at some point, so lines that are not
possible any more are left out, and the history goes on to its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from expertflow.tests.simulation.clock import simulated
from expertflow.tests.simulation.history import replay

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))


@pytest.fixture(scope="module", autouse=True)
def simulation() -> Iterator[None]:
    with simulated():
        yield


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_a_fault_that_was_found_does_not_come_back(file: Path) -> None:
    outcome = replay(file.read_text(), exact=False)
    assert not outcome.broken, outcome.script()
