"""Host memory that a device copies from: registered only while it is mapped, and let go with its runtime."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.system.schedules import Driver, drive
from expertflow.workers.compute.device import cuda
from expertflow.workers.compute.device.cuda import CudaDevice
from expertflow.workers.compute.device.fake import FakeDevice
from expertflow.workers.model.unit import RowAbilities
from expertflow.workers.surveyor.surveyor import survey_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


class ClosedDevice(FakeDevice):
    """Counts."""

    closed = 0

    def close(self) -> None:
        super().close()
        self.closed += 1


@pytest.mark.parametrize("places", [0, 2])
def test_a_runtime_lets_go_of_its_store(folders: Path, places: int) -> None:
    """Else a GPU goes on reading the pages that were there, whatever the next runtime maps at that address."""
    survey, device = survey_checkpoint(str(folders / "olmoe")), ClosedDevice(3)
    tier = "disk" if places else "host"
    for runs in (1, 2):
        with LocalRuntime(survey, 4, RowAbilities.of(survey.rows), tier=tier, device=device, places=places) as runtime:
            drive(Driver(runtime, survey.vocabulary), 2, seed=runs)
        assert device.closed == runs


class Runtime:
    """Registered addresses, as CUDA would know them."""

    def __init__(self) -> None:
        self.addresses: set[int] = set()

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802 - the library's name
        self.addresses.add(address)
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.addresses.remove(address)
        return 0


def test_registered_memory_stays_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, device = Runtime(), object.__new__(CudaDevice)  # there is no GPU to make it with
    monkeypatch.setattr(cuda, "_runtime", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    device._registered, store = [], np.zeros(4096, dtype=np.uint8)
    mapped, address = weakref.ref(store), store.ctypes.data
    device.register_store(store)
    del store
    gc.collect()
    assert mapped() is not None and runtime.addresses == {address} and device.pinned
    device.close()
    assert mapped() is None and not runtime.addresses and not device.pinned
