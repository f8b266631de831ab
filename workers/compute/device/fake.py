"""A device for tests, on the CPU: kernels and copies run late, in an order of which only streams and events are kept.

What is enqueued waits until the host waits for it, or chance lets it run. A slot is poisoned when its copy begins, and
a copy is done in two halves, so that whoever fails to wait computes with garbage, or with what was there before.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ....errors import EngineError
from ..experts.routing import DeferredRoutes
from .base import DeviceEvent
from .groups import GroupedProduct
from .plain_product import plain_product

POISON = 0xFF
"""NaN in every float type."""
MEMORY_BYTES = 2**30
MOODS = (0.02, 0.5, 0.98)
"""How readily copies run while kernels could."""
RESTLESSNESS = 0.2
COMES_TRUE = 0.4
"""How often an event that is asked for turns out to be reached."""


class FakeEvent:
    def __init__(self, owner: FakeDevice) -> None:
        self._owner, self.reached = owner, False

    def done(self) -> bool:
        if self._owner.chance(COMES_TRUE):
            self.wait()
        return self.reached

    def wait(self) -> None:
        self._owner.run_until(lambda: self.reached)


class FakeStream:
    """Work in its order; a `FakeEvent` among it is waited for."""

    def __init__(self, owner: FakeDevice) -> None:
        self._owner = owner
        self._work: deque[Callable[[], None] | FakeEvent] = deque()

    @property
    def idle(self) -> bool:
        return not self._work

    @property
    def runnable(self) -> bool:
        head = self._work[0] if self._work else None
        return head is not None and (not isinstance(head, FakeEvent) or head.reached)

    def run_one(self) -> None:
        head = self._work.popleft()
        if not isinstance(head, FakeEvent):
            head()

    def launch(self, kernel: Callable[[], None]) -> None:
        self._work.append(kernel)
        self._owner.stir()

    def copy(self, target: Tensor, source: Tensor) -> None:
        middle = len(target) // 2
        self._work.append(lambda: _poison(target))
        for half in (slice(middle), slice(middle, None)):
            self._work.append(lambda half=half: _copy(target[half], source[half]))
        self._owner.stir()

    def wait(self, event: DeviceEvent) -> None:
        if isinstance(event, FakeEvent):
            self._work.append(event)

    def record(self) -> FakeEvent:
        event = FakeEvent(self._owner)
        self._work.append(lambda: setattr(event, "reached", True))
        self._owner.stir()
        return event


class FakeDevice:
    """See `Device`. The same seed gives the same order for the same calls."""

    torch_device = torch.device("cpu")
    pinned = True

    def __init__(self, seed: int = 0) -> None:
        self.name = f"fake:{seed}"
        self.kernels, self.copies, self.urgent = FakeStream(self), FakeStream(self), FakeStream(self)
        self._random = random.Random(seed)
        self._mood = MOODS[seed % len(MOODS)]

    def free_bytes(self) -> int:
        return MEMORY_BYTES

    def limit(self, count_bytes: int) -> None:
        """Its memory is not limited."""

    def allocate(self, count_bytes: int) -> Tensor:
        return torch.full((count_bytes,), POISON, dtype=torch.uint8)

    def adopt(self, store: np.ndarray) -> Tensor:
        return torch.from_numpy(store)

    def upload(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array)

    def fetch(self, tensor: Tensor) -> DeferredRoutes:
        reached = self.kernels.record()

        def read() -> np.ndarray:
            reached.wait()
            return tensor.numpy()

        return read

    def grouped_product(self, experts: int, dtype: torch.dtype) -> GroupedProduct | None:
        return plain_product

    def catch_up(self) -> None:
        """Torch's operations on a CPU do not wait their turn."""
        self.run_until(lambda: self.kernels.idle)

    @contextmanager
    def aside(self, after: DeviceEvent) -> Iterator[None]:
        after.wait()
        yield

    def require_usable(self) -> None:
        """Its kernels fail in Python, where they are launched or awaited, and leave it as it was."""

    def facts(self) -> dict[str, int | float | str]:
        return {"device": self.name}

    def close(self) -> None:
        self.run_until(lambda: all(stream.idle for stream in self._streams()))

    def stir(self) -> None:
        """Now and then something runs by itself."""
        while self.chance(RESTLESSNESS) and self._turn():
            pass

    def chance(self, of: float) -> bool:
        return self._random.random() < of

    def run_until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            if not self._turn():
                raise EngineError("its streams wait for each other", self.name, "Report this as a bug")

    def _turn(self) -> bool:
        """Something that can run runs; False: nothing can."""
        copies = [stream for stream in (self.copies, self.urgent) if stream.runnable]
        if copies and (not self.kernels.runnable or self.chance(self._mood)):
            self._random.choice(copies).run_one()
        elif self.kernels.runnable:
            self.kernels.run_one()
        else:
            return False
        return True

    def _streams(self) -> tuple[FakeStream, ...]:
        return self.kernels, self.copies, self.urgent


def _poison(target: Tensor) -> None:
    target.fill_(POISON)


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)
