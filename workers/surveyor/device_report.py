"""Tries out a device as compute would use it: opens it and pins some host memory. Imports torch."""

from __future__ import annotations

from ...errors import ExpertFlowError
from ...ipc.shared.memory import Arena
from ..compute.device import open_device
from .answers import DeviceReport

TRIED_BYTES = 64 << 20
"""Host memory that is pinned, from an arena as the host store is one."""


def report_device(name: str) -> DeviceReport:
    """Return the state of the device of this name."""
    try:
        device = open_device(name)
    except (ExpertFlowError, RuntimeError) as error:  # the library's own errors of a broken driver
        return DeviceReport(name=name, error=str(error).splitlines()[0])
    if device is None:
        return DeviceReport(name=name)
    arena = Arena.create("doctor", TRIED_BYTES)
    try:
        device.register_store(arena.array)
        return DeviceReport(name=name, free_bytes=device.free_bytes(), pinned=device.pinned)
    finally:
        device.close()
        arena.close()
