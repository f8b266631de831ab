"""A device for tests, on the CPU: kernels and copies run late, in a random order that respects streams and events only.

Enqueued work runs when the host waits for it, or by chance before. A slot is poisoned when its copy begins, and a copy
runs in two halves: a kernel that fails to wait reads garbage, or the slot's previous contents.
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
from .grouped_product import GroupedProduct, plain_product

POISON = 0xFF
"""A byte that, repeated, is NaN in every float type."""
MEMORY_BYTES = 2**30
COPY_PROBABILITIES = (0.02, 0.5, 0.98)
"""Probability that a copy runs first where a kernel could run too; the seed selects one."""
RUN_PROBABILITY = 0.2
"""Probability that work runs right after something was enqueued."""
REACHED_PROBABILITY = 0.4
"""Probability that a queried event is found to be reached."""


class FakeEvent:
    def __init__(self, owner: FakeDevice) -> None:
        self._owner, self.reached = owner, False

    def done(self) -> bool:
        if self._owner.draw(REACHED_PROBABILITY):
            self.wait()
        return self.reached

    def wait(self) -> None:
        self._owner.run_until(lambda: self.reached)


class FakeStream:
    """A queue of work in order; a `FakeEvent` in it blocks the work behind it until it is reached."""

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
        self._owner.run_some()

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Enqueue a copy of uint8 [bytes] in two halves; until they ran, `target` is poisoned."""
        middle = len(target) // 2
        self._work.append(lambda: _poison(target))
        for half in (slice(middle), slice(middle, None)):
            self._work.append(lambda half=half: _copy(target[half], source[half]))
        self._owner.run_some()

    def wait(self, event: DeviceEvent) -> None:
        if isinstance(event, FakeEvent):
            self._work.append(event)

    def record(self) -> FakeEvent:
        event = FakeEvent(self._owner)
        self._work.append(lambda: setattr(event, "reached", True))
        self._owner.run_some()
        return event


class FakeDevice:
    """A `Device` on the CPU. The same seed gives the same order for the same calls."""

    torch_device = torch.device("cpu")
    pinned = True

    def __init__(self, seed: int = 0) -> None:
        self.name = f"fake:{seed}"
        self.kernels, self.copies, self.urgent = FakeStream(self), FakeStream(self), FakeStream(self)
        self._random = random.Random(seed)
        self._copy_probability = COPY_PROBABILITIES[seed % len(COPY_PROBABILITIES)]

    def free_bytes(self) -> int:
        return MEMORY_BYTES

    def limit_memory(self, count_bytes: int) -> None:
        """Do nothing: this memory is not limited."""

    def allocate(self, count_bytes: int) -> Tensor:
        """Return poisoned memory, uint8 [count_bytes]."""
        return torch.full((count_bytes,), POISON, dtype=torch.uint8)

    def register_store(self, store: np.ndarray) -> Tensor:
        """Return the store, uint8 [bytes], without a copy."""
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

    def join_kernels(self) -> None:
        """Run all launched kernels: torch's operations on a CPU are not in a stream."""
        self.run_until(lambda: self.kernels.idle)

    @contextmanager
    def side_stream(self, after: DeviceEvent) -> Iterator[None]:
        after.wait()
        yield

    def require_usable(self) -> None:
        """Do nothing: kernels fail as Python exceptions and leave the device usable."""

    def facts(self) -> dict[str, int | float | str]:
        return {"device": self.name}

    def close(self) -> None:
        self.run_until(lambda: all(stream.idle for stream in self._streams()))

    def run_some(self) -> None:
        """Run some of the enqueued work, at random."""
        while self.draw(RUN_PROBABILITY) and self._run_one():
            pass

    def draw(self, probability: float) -> bool:
        """Return True with this probability."""
        return self._random.random() < probability

    def run_until(self, reached: Callable[[], bool]) -> None:
        """Run enqueued work until `reached()`. Raises EngineError if no work can run before that."""
        while not reached():
            if not self._run_one():
                raise EngineError("its streams wait for each other", self.name, "Report this as a bug")

    def _run_one(self) -> bool:
        """Run one piece of work that can run; return False if none can."""
        copies = [stream for stream in (self.copies, self.urgent) if stream.runnable]
        if copies and (not self.kernels.runnable or self.draw(self._copy_probability)):
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
