"""What a device is to the rest of compute: memory, streams that work by themselves, and events between them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from torch import Tensor, device, dtype

from ..experts.routing import DeferredRoutes
from .groups import GroupedProduct


class DeviceEvent(Protocol):
    """A moment in a stream: what was enqueued there before it was recorded is done."""

    def done(self) -> bool:
        """Whether it has come, without waiting."""
        ...

    def wait(self) -> None:
        """The host waits for it."""
        ...


class Stream(Protocol):
    """A queue of work on a device; what is in one stream runs in order, streams know each other by events alone."""

    def launch(self, kernel: Callable[[], None]) -> None:
        """Enqueue what `kernel` does with tensors of the device."""
        ...

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Enqueue a copy from host memory, which must stay as it is until the copy is done."""
        ...

    def wait(self, event: DeviceEvent) -> None:
        """What is enqueued from now on runs after `event`; the host does not wait."""
        ...

    def record(self) -> DeviceEvent:
        """An event after all that is enqueued by now."""
        ...


class Device(Protocol):
    """One device, and this process's streams on it."""

    name: str

    @property
    def torch_device(self) -> device: ...

    @property
    def kernels(self) -> Stream:
        """Where torch's own operations run, too."""
        ...

    @property
    def copies(self) -> Stream:
        """For experts that are brought in ahead."""
        ...

    @property
    def urgent(self) -> Stream:
        """For experts that a layer waits for."""
        ...

    def free_bytes(self) -> int:
        """Of the device's memory: what nobody holds now."""
        ...

    def limit(self, count_bytes: int) -> None:
        """This process takes no more than so much from now on: another engine's budget is not touched."""
        ...

    def allocate(self, count_bytes: int) -> Tensor:
        """uint8 memory of the device. Raises BudgetError if it has not so much."""
        ...

    def adopt(self, store: np.ndarray) -> Tensor:
        """Host memory (uint8, shared) as a source of copies, registered so that they run by themselves if it can be."""
        ...

    def upload(self, array: np.ndarray) -> Tensor:
        """A small array as a tensor for kernels that are enqueued from now on; the host does not wait."""
        ...

    def fetch(self, tensor: Tensor) -> DeferredRoutes:
        """A small tensor of the device, on its way back; the host does not wait now."""
        ...

    def grouped_product(self, experts: int, dtype: dtype) -> GroupedProduct | None:
        """For layers of so many experts of this dtype; None where there is no such kernel."""
        ...

    def catch_up(self) -> None:
        """Operations of torch that are not launched follow, and read what was launched."""
        ...

    def aside(self, after: DeviceEvent) -> AbstractContextManager[None]:
        """What torch runs inside waits for `after` alone, not for kernels that were launched since; its results are
        read back inside, too."""
        ...

    @property
    def pinned(self) -> bool:
        """Whether copies from the adopted store run by themselves."""
        ...

    def require_usable(self) -> None:
        """Raises EngineError if nothing will ever run on it again in this process, as after a kernel that failed.

        The host waits for all that is enqueued.
        """
        ...

    def facts(self) -> dict[str, int | float | str]:
        """What a user may want to know about it."""
        ...

    def close(self) -> None:
        """Let go of host memory, once all copies are done."""
        ...
