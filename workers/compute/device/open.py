"""From the name in a configuration to a device."""

from __future__ import annotations

from .base import Device


def open_device(name: str) -> Device | None:
    """`cuda` or `cuda:N`, `fake:SEED` (tests); None for `cpu`. Raises UsageError if it cannot be used here."""
    kind, _, number = name.partition(":")
    if kind == "cuda":
        from .cuda import CudaDevice

        return CudaDevice(int(number or 0))
    if kind == "fake":
        from .fake import FakeDevice

        return FakeDevice(int(number or 0))
    return None
