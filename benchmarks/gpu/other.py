"""A second process over the same host store, as the loader would be: with a context of its own, it registers its own
mapping and copies from it when it is asked."""

from __future__ import annotations

import mmap
import os
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from expertflow.ipc.shared.memory import Arena
from expertflow.workers.compute.device.base import Device
from torch import Tensor

from .rates import in_order, rate
from .under_test import UnderTest

ANSWER_S = 40


class OtherProcess:
    """A context manager. It copies into `slots`, memory of this process, or else into memory of its own."""

    def __init__(self, test: UnderTest, arena: Arena, slots: Tensor | None = None) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        given = (theirs, test, (os.getpid(), arena.fd, arena.size_bytes), slots)
        self._process = context.Process(target=serve, args=given, daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self.pinned = bool(self.answer())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.begin("end")
            self._process.join(ANSWER_S)
        self._process.kill()
        self._process.join()

    def ask(self, order: str) -> Any:
        self.begin(order)
        return self.answer()

    def begin(self, order: str) -> None:
        """Without waiting for what it answers."""
        self._pipe.send(order)

    def answer(self) -> Any:
        if not self._pipe.poll(ANSWER_S):
            raise TimeoutError("the other process does not answer")
        return self._pipe.recv()


def serve(pipe: Any, test: UnderTest, memory: tuple[int, int, int], slots: Tensor | None) -> None:
    """The other side. Orders: `rate` (all of the store, again and again), `one` piece, `right` (whether what was
    copied is what the store holds), `end`."""
    device = test.open()
    owner, fd, count_bytes = memory
    shared = os.open(f"/proc/{owner}/fd/{fd}", os.O_RDWR)
    array = np.frombuffer(mmap.mmap(shared, count_bytes), dtype=np.uint8)
    store, target = device.adopt(array), device.allocate(count_bytes) if slots is None else slots
    pipe.send(device.pinned)
    while (order := pipe.recv()) != "end":
        pipe.send(_do(order, test, device, target, store))
    device.close()


def _do(order: str, test: UnderTest, device: Device, target: Tensor, store: Tensor) -> Any:
    piece = test.scale.pieces_bytes[-1]
    if order == "rate":
        return rate(test, device, len(target), in_order(device, target, store, piece))
    if order == "one":
        return copy_one(test, device, target, store)
    return same(target, store)


def copy_one(test: UnderTest, device: Device, target: Tensor, store: Tensor) -> None:
    """A piece as small as an expert, from order to done."""
    piece = test.scale.pieces_bytes[0]
    device.copies.copy(target[:piece], store[:piece])
    device.copies.record().wait()


def same(target: Tensor, store: Tensor) -> bool:
    return torch.equal(target.cpu(), store)


def pattern(count_bytes: int) -> np.ndarray:
    """Bytes of which no two pieces are alike."""
    return np.resize(np.arange(251, dtype=np.uint8), count_bytes)
