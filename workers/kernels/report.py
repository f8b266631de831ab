"""The report on a process like compute, for `doctor` and `plan`: machine, library, native kernels, a model's table.

Plain data, readable without torch.
"""

from __future__ import annotations

import msgspec

from ..packed.choice import DEQUANTISED, PackingChoice
from .table import KernelTable


class KernelReport(msgspec.Struct, frozen=True, kw_only=True):
    """State of the kernels on this machine, with the environment and threads of compute."""

    cpu: str
    flags: list[str]
    """Flags of the CPU that kernels make use of."""
    threads: int
    torch: str
    capability: str
    """Instructions that the library uses."""
    caps: dict[str, str]
    """Environment variables that keep the library from more, where they are set."""
    native: str
    """Variant of the native kernels in use; empty: none."""
    variants: list[str]
    """Variants of the native kernels that this CPU can run."""
    missing: str
    """Why there are no native kernels; empty: there are."""
    cache: str
    """Folder in which tables are kept; empty: none can be."""
    table: KernelTable | None = None
    """The table of the model; None without a model, or for one on a device."""
    notices: list[str] = []
    """Remarks for the user."""


class DiagnosisRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The question of `expertflow doctor` or `plan` to its process; without a model only the machine."""

    model: str
    revision: str
    dtype: str
    generation_settings: str
    kernels: str
    on_device: bool
    measure: bool
    """Time the kernels even if a table was kept."""
    devices: list[str] = []
    """Devices that are tried out."""
    choice: PackingChoice = DEQUANTISED
    download: bool = True
    """False: of a hub id that is not on this machine only the configuration is fetched, and no kernel is timed."""
