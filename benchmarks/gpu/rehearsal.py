"""Rehearse the check: the fake device, memory of the CPU, tiny models and few steps.

All of the check runs so but the calls in on_cuda.py. No figure of it means anything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from expertflow.runtime.demo.widened import widened_copy
from expertflow.workers.compute.device.base import Device
from expertflow.workers.compute.device.fake import FakeDevice
from torch import Tensor

from ..models import EXAMPLES
from .under_test import Scale

KIB = 2**10
SCALE = Scale(
    families=("olmoe",),
    store_bytes=256 * KIB,
    pieces_bytes=(16 * KIB, 64 * KIB),
    repeats=2,
    orders=5,
    batches=(1, 8),
    prompt=6,
    steps=8,
    warm=2,
    patience_s=20.0,
    kv_memory="16MiB",
)
LATE_COPIES, LATE_KERNELS = 0, 2
"""Seeds of the fake device: they select how likely copies run before kernels."""
FACTOR = 2
"""Factor of widening."""


class Rehearsal:
    """Implement `UnderTest` on the CPU."""

    scale, device, where = SCALE, "fake:1", "cpu"

    def open(self) -> FakeDevice:
        return FakeDevice(1)

    def late(self, copies: bool) -> FakeDevice:
        return FakeDevice(LATE_COPIES if copies else LATE_KERNELS)

    def pinned(self, count_bytes: int) -> Tensor:
        return torch.empty(count_bytes, dtype=torch.uint8)

    def seconds(self, device: Device, enqueue: Callable[[], None]) -> float:
        started = time.perf_counter()
        enqueue()
        device.copies.record().wait()
        return time.perf_counter() - started

    def facts(self) -> dict[str, Any]:
        found = {"torch": torch.__version__, "transformers": version("transformers")}
        return {"device": "none", **found, "cores": os.cpu_count()}

    def peak_bytes(self) -> int:
        return 0

    def offloading(self, kept_bytes: int, folder: Path) -> dict[str, Any]:
        return {"device_map": "auto", "max_memory": {"cpu": kept_bytes, "disk": 10**15}, "offload_folder": str(folder)}

    def model_folder(self, name: str, folder: Path) -> Path:
        if name != "r":
            return widened_copy(EXAMPLES / "model", folder, FACTOR)
        from expertflow.tests.models.families import save_tiny

        save_tiny("olmoe", folder / name)
        return folder / name
