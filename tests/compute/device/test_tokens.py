"""A fake device computes what a CPU does, bit for bit, however late its kernels and copies run; and it would show if
it did not wait."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from expertflow.errors import EngineError
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.system.schedules import Digests, Driver, drive
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.device.copy_scheduler import CopyScheduler
from expertflow.workers.compute.device.fake import FakeDevice
from expertflow.workers.loader.host_tier import HostTier
from expertflow.workers.model.unit import RowAbilities
from expertflow.workers.surveyor.surveyor import survey_checkpoint

BATCH = 5
FAMILY = "qwen3_moe"
pytestmark = pytest.mark.usefixtures("one_thread")


class Store(NamedTuple):
    """Where experts come from: the whole host store, or so many places of it before the disk."""

    tier: str
    places: int = 0


WHOLE, ONE_PLACE, TWO_PLACES = Store("host"), Store("disk", 1), Store("disk", 2)


@cache
def surveyed(folder: Path, dtype: str) -> Survey:
    return survey_checkpoint(str(folder), dtype=dtype)


def logits(survey: Survey, slots: int, device: FakeDevice | None, store: Store = WHOLE) -> list[bytes]:
    """Digests of the logits of all rows of all steps of a schedule."""
    seen, abilities = Digests(), RowAbilities.of(survey.rows)
    options = {"tier": store.tier, "device": device, "places": store.places}
    with LocalRuntime(survey, slots, abilities, seen.choose, **options) as runtime:  # pyright: ignore[reportArgumentType]
        drive(Driver(runtime, survey.vocabulary), BATCH, seed=1)
    return seen.seen


@cache
def resident(folder: Path, dtype: str) -> list[bytes]:
    survey = surveyed(folder, dtype)
    return logits(survey, survey.expert_count, None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("store", [WHOLE, ONE_PLACE, TWO_PLACES], ids=str)
@pytest.mark.parametrize("slots", [1, pytest.param(4, marks=pytest.mark.slow), 12, 36])
def test_no_bit_depends_on_how_late_a_device_is(folders: Path, slots: int, store: Store, dtype: str) -> None:
    """I1a over budgets of the device and of the host, each with an order of its own."""
    folder = folders / FAMILY
    seed = slots + store.places
    assert logits(surveyed(folder, dtype), slots, FakeDevice(seed), store) == resident(folder, dtype)


def forget_to_wait(*anything: object) -> None:
    """In place of a wait."""


MUTANTS = {
    "kernels do not wait for the copy": (CopyScheduler, "_await_copy", WHOLE),
    "a copy does not wait for the kernels": (CopyScheduler, "_await_kernels", WHOLE),
    "a read does not wait for the copy": (HostTier, "_pin", TWO_PLACES),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wait_that_is_left_out_shows(folders: Path, monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    """I3: of a few orders at least one gives other logits, or logits that are no numbers."""
    owner, wait, store = MUTANTS[mutant]
    monkeypatch.setattr(owner, wait, forget_to_wait)
    folder = folders / FAMILY
    assert any(differs(folder, seed, store) for seed in range(6))


def differs(folder: Path, seed: int, store: Store) -> bool:
    try:
        return logits(surveyed(folder, "float32"), 3, FakeDevice(seed), store) != resident(folder, "float32")
    except (AssertionError, EngineError):  # a row failed: its logits contain NaN
        return True
