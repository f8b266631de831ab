"""Define what a check runs on, behind one interface: a GPU (on_cuda.py), or the CPU in a rehearsal (rehearsal.py).

All else of the check is the same code for both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from expertflow.workers.compute.device.base import Device
from torch import Tensor


class Scale(NamedTuple):
    """Say how much a check does."""

    families: tuple[str, ...]
    store_bytes: int
    """Bytes of host memory that is copied from."""
    pieces_bytes: tuple[int, ...]
    """Sizes of copies."""
    repeats: int
    orders: int
    """Single copies whose time from order to done is taken."""
    batches: tuple[int, ...]
    prompt: int
    steps: int
    warm: int
    """Tokens of a sequence, and how many decode steps of them are left out of the figures."""
    patience_s: float
    """Seconds after which a case ends, once it has a few steps."""
    kv_memory: str


class UnderTest(Protocol):
    """Offer the link and the device under test, and what this check has to know of them."""

    scale: Scale
    device: str
    """As it is configured."""
    where: str
    """As torch calls it."""

    def open(self) -> Device: ...

    def late(self, copies: bool) -> Device:
        """Open one whose copies, or else whose kernels of experts, begin late."""
        ...

    def pinned(self, count_bytes: int) -> Tensor:
        """Make a plain pinned tensor, as torch makes it."""
        ...

    def seconds(self, device: Device, enqueue: Callable[[], None]) -> float:
        """Measure between two events in the stream of copies, around what is enqueued there."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what figures depend on."""
        ...

    def peak_bytes(self) -> int:
        """Return the most device memory that torch held in this process, in bytes."""
        ...

    def offloading(self, kept_bytes: int, folder: Path) -> dict[str, Any]:
        """Return options of `from_pretrained` by which accelerate keeps so many bytes on the device."""
        ...

    def model_folder(self, name: str, folder: Path) -> Path:
        """Return a model of the table, made at the first call: in this user's cache, or if it is tiny in `folder`."""
        ...
