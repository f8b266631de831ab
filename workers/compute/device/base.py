"""Interface of a device: memory, streams that run on their own, and events between them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from torch import Tensor, device, dtype

from ..experts.routing import DeferredRoutes
from .grouped_product import GroupedProduct


class DeviceEvent(Protocol):
    """A point in a stream, reached when all work enqueued before it was recorded is done."""

    def done(self) -> bool:
        """Return whether the stream has reached it, without waiting."""
        ...

    def wait(self) -> None:
        """Block the host until the stream has reached it."""
        ...


class Stream(Protocol):
    """A queue of work on a device: work of one stream runs in order, events alone order streams."""

    def launch(self, kernel: Callable[[], None]) -> None:
        """Enqueue the tensor operations that `kernel` runs."""
        ...

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Enqueue a copy from host memory, which must not change until the copy is done.

        Both are uint8 [bytes], of equal length.
        """
        ...

    def wait(self, event: DeviceEvent) -> None:
        """Run work that is enqueued from now on after `event`; the host does not wait."""
        ...

    def record(self) -> DeviceEvent:
        """Return an event after all work that is enqueued by now."""
        ...


class Device(Protocol):
    """One device, and this process's streams on it."""

    name: str

    @property
    def torch_device(self) -> device: ...

    @property
    def kernels(self) -> Stream:
        """Stream of the experts' kernels; torch's own operations run in it, too."""
        ...

    @property
    def copies(self) -> Stream:
        """Stream that prefetches experts."""
        ...

    @property
    def urgent(self) -> Stream:
        """Stream for experts that a layer waits for."""
        ...

    def free_bytes(self) -> int:
        """Return the free memory of the device."""
        ...

    def limit_memory(self, count_bytes: int) -> None:
        """Let this process take at most `count_bytes` more, so that other engines keep their budgets."""
        ...

    def allocate(self, count_bytes: int) -> Tensor:
        """Return memory of the device, uint8 [count_bytes]. Raises BudgetError if it is not free."""
        ...

    def register_store(self, store: np.ndarray) -> Tensor:
        """Return shared host memory, uint8 [bytes], as a source of copies.

        Pin it if possible, so that copies do not block.
        """
        ...

    def upload(self, array: np.ndarray) -> Tensor:
        """Copy a small array to the device, ahead of kernels that are launched from now on; the host does not wait.

        Any shape and dtype, such as int64 [3, groups]; both stay.
        """
        ...

    def fetch(self, tensor: Tensor) -> DeferredRoutes:
        """Begin to copy a small tensor to the host, such as routes [tokens, top-k].

        The returned function waits for the copy and returns it, in the same shape and dtype.
        """
        ...

    def grouped_product(self, experts: int, dtype: dtype) -> GroupedProduct | None:
        """Return a product for layers of up to `experts` experts of this dtype; None if no such kernel runs here."""
        ...

    def join_kernels(self) -> None:
        """Order torch's next operations after the launched kernels, so that they may read the results."""
        ...

    def side_stream(self, after: DeviceEvent) -> AbstractContextManager[None]:
        """Run torch's operations inside the context after `after`, without waiting for kernels launched since.

        Results must be read back inside, too.
        """
        ...

    @property
    def pinned(self) -> bool:
        """Return whether copies from the registered store run without blocking the host."""
        ...

    def require_usable(self) -> None:
        """Wait for all enqueued work. Raises EngineError if this process cannot use the device any more.

        A failed kernel, for example, makes a GPU unusable for its process.
        """
        ...

    def facts(self) -> dict[str, int | float | str]:
        """Return facts about the device for the user."""
        ...

    def close(self) -> None:
        """Wait for all copies, then unregister host memory."""
        ...
