"""I1d for every architecture that runs: a batch-invariant row has the same bits alone and among others.

That holds also for those whose rows cannot be padded or moved otherwise. Two stand for all by default.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from expertflow.tests.lockstep.lives import differing, live_alone, live_together, surveyed
from expertflow.tests.registry.test_registry import ROWS, RUNNING
from expertflow.tests.registry.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

RIGID = [row.model_type for row in ROWS.models if not row.refused and not (row.padding and row.moving)]
"""Architectures whose rows cannot be padded, or cannot be moved."""


def check(folder: Path, model_type: str, dtype: str) -> None:
    save_tiny(model_type, folder)
    survey = surveyed(folder, dtype)
    life = live_together(survey, 3, 5)
    assert life.digests.most == 5
    assert differing(life.bits, live_alone(survey, life)) == []


@pytest.mark.parametrize("model_type", RIGID[:2])
def test_rows_that_cannot_be_padded_share_steps(tmp_path: Path, model_type: str) -> None:
    check(tmp_path, model_type, "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", RUNNING)
def test_every_architecture(tmp_path: Path, model_type: str, dtype: str) -> None:
    check(tmp_path, model_type, dtype)
