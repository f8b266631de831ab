"""Slots in the memory of a device. Streams run kernels and copies; events alone order them.

A CPU uses none of this. Importing this package needs no CUDA; only cuda.py and the Triton files call it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Device


def open_device(name: str) -> Device | None:
    """Open `cuda`, `cuda:N` or `fake:SEED` (for tests); return None for `cpu`.

    Raises UsageError if this machine cannot use the device.
    """
    backend, _, number = name.partition(":")
    if backend == "cuda":
        from .cuda import CudaDevice

        return CudaDevice(int(number or 0))
    if backend == "fake":
        from .fake import FakeDevice

        return FakeDevice(int(number or 0))
    return None
