"""A fake device computes what a CPU does, bit for bit, however late its kernels and copies run."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from expertflow.runtime.local import LocalRuntime
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.checkpoint.surveyor import survey_checkpoint
from expertflow.workers.compute.device.fake import FakeDevice
from expertflow.workers.compute.unit import RowAbilities

from tests.system.schedules import Digests, Driver, drive

BATCH = 6
FAMILY = "qwen3_moe"
pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def surveyed(folder: Path, dtype: str = "float32") -> Survey:
    return survey_checkpoint(str(folder), dtype=dtype)


def run(survey: Survey, slots: int, device: FakeDevice | None, tier: str = "host", places: int = 0) -> list[bytes]:
    digests = Digests()
    abilities = RowAbilities.of(survey.rows)
    runtime = LocalRuntime(survey, slots, abilities, digests.choose, tier=tier, device=device, places=places)
    with runtime:
        drive(Driver(runtime, survey.vocabulary), BATCH, seed=1)
    return digests.seen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("slots", [1, 4, 12, 36])
def test_bits(folders: Path, slots: int, seed: int) -> None:
    survey = surveyed(folders / FAMILY)
    assert run(survey, slots, FakeDevice(seed)) == run(survey, survey.expert_count, None)
