"""The answer of the process that examines machine and model: plain data, readable without torch."""

from __future__ import annotations

import msgspec

from ..checkpoint.survey import ModelSizes
from ..kernels.report import KernelReport


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """State of a device, as compute would open it."""

    name: str
    error: str = ""
    """Reason why it cannot be opened; empty: it can."""
    free_bytes: int = 0
    pinned: bool = False
    """Host memory could be pinned for it."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """State of the kernels, and the sizes of the model in question."""

    kernels: KernelReport
    sizes: ModelSizes | None = None
    """None without a model."""
    devices: list[DeviceReport] = []
    """Devices of the configuration, none on a CPU."""
    fingerprint: str = ""
    """Digest of the model; empty without its weights."""
    files: list[str] = []
    """Files of weights on this machine."""
