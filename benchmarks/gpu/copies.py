"""Measure copies from host memory, in one process and in two.

Ways: from a plain pinned tensor; from shared memory that was registered; from the same as the engine orders them (into
slots in any order, each with an event of its own); from pageable memory; by two processes that register one store; by
another process (the loader) into the slots of compute, handed over through CUDA IPC.
"""

from __future__ import annotations

import mmap
import os
import random
import statistics
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from expertflow.ipc.messages import Copy
from expertflow.ipc.shared.memory import Arena
from expertflow.workers.compute.device.base import Device
from expertflow.workers.compute.device.copy_scheduler import CopyScheduler
from torch import Tensor

from .under_test import UnderTest


def measure_rates(test: UnderTest) -> dict[str, Any]:
    """Measure bytes a second of all ways in this process. `holds`: the store could be registered."""
    device, count_bytes = test.open(), test.scale.store_bytes
    arena = Arena.create("rates", count_bytes)
    began = time.perf_counter()
    store = device.register_store(arena.array)
    registering_s = time.perf_counter() - began
    target, pageable = device.allocate(count_bytes), torch.ones(count_bytes, dtype=torch.uint8)
    sources = {"pinned": test.pinned(count_bytes), "registered": store, "pageable": pageable}
    rows = []
    for piece in test.scale.pieces_bytes:
        ways = {name: in_order(device, target, source, piece) for name, source in sources.items()}
        ways["ordered"] = as_ordered(device, target, store, piece)
        rows.append({"piece_bytes": piece, **{name: rate(test, device, count_bytes, ways[name]) for name in ways}})
    holds = device.pinned
    device.close()
    arena.close()
    return {"holds": holds, "registering_s": registering_s, "store_bytes": count_bytes, "rows": rows}


def rate(test: UnderTest, device: Device, count_bytes: int, enqueue: Callable[[], None]) -> float:
    """Return bytes a second, median over repeats; what is done once before is not counted."""
    enqueue()
    return statistics.median(count_bytes / test.seconds(device, enqueue) for _ in range(test.scale.repeats))


def in_order(device: Device, target: Tensor, source: Tensor, piece_bytes: int) -> Callable[[], None]:
    """Return what enqueues pieces that follow each other."""

    def enqueue() -> None:
        for at in range(0, len(target), piece_bytes):
            device.copies.copy(target[at : at + piece_bytes], source[at : at + piece_bytes])

    return enqueue


def as_ordered(device: Device, target: Tensor, store: Tensor, piece_bytes: int) -> Callable[[], None]:
    """Return what enqueues them as compute does when the loader orders copies of experts."""
    traffic = CopyScheduler(device, target, store, piece_bytes, lambda layer, expert: piece_bytes)
    slots = list(range(len(target) // piece_bytes))
    places = random.Random(0).sample(slots, len(slots))

    def enqueue() -> None:
        traffic.release(slots)
        for slot, place in zip(slots, places, strict=True):
            traffic.copy(Copy(slot, slot, 0, slot, place))
            traffic.take_finished()

    return enqueue


ANSWER_S = 40


class OtherProcess:
    """Run a second process over the same store, as the loader would be, and close it at the end.

    It has a context of its own, registers its own mapping, and copies when asked: into `slots`, memory of this process,
    or else into memory of its own.
    """

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
        """Send an order without waiting for what it answers."""
        self._pipe.send(order)

    def answer(self) -> Any:
        if not self._pipe.poll(ANSWER_S):
            raise TimeoutError("the other process does not answer")
        return self._pipe.recv()


def serve(pipe: Any, test: UnderTest, memory: tuple[int, int, int], slots: Tensor | None) -> None:
    """Serve as the other process.

    Orders: `rate` (all of the store, again and again), `one` piece, `right` (whether what was copied is what the store
    holds), `end`.
    """
    device = test.open()
    owner, fd, count_bytes = memory
    shared = os.open(f"/proc/{owner}/fd/{fd}", os.O_RDWR)
    array = np.frombuffer(mmap.mmap(shared, count_bytes), dtype=np.uint8)
    store, target = device.register_store(array), device.allocate(count_bytes) if slots is None else slots
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
    """Copy a piece as small as an expert, from order to done."""
    piece = test.scale.pieces_bytes[0]
    device.copies.copy(target[:piece], store[:piece])
    device.copies.record().wait()


def same(target: Tensor, store: Tensor) -> bool:
    return torch.equal(target.cpu(), store)


def pattern(count_bytes: int) -> np.ndarray:
    """Return bytes of which no two pieces are alike."""
    return np.resize(np.arange(251, dtype=np.uint8), count_bytes)


def measure_sharing(test: UnderTest) -> dict[str, Any]:
    """Measure bytes a second of two processes over one store, alone and at once, beside a plain pinned tensor.

    `holds`: both could register it, and what both copied is what it holds.
    """
    device, count_bytes = test.open(), test.scale.store_bytes
    arena = Arena.create("sharing", count_bytes)
    arena.array[:] = pattern(count_bytes)
    store, own = device.register_store(arena.array), device.allocate(count_bytes)
    piece = test.scale.pieces_bytes[-1]
    plain, copy = (in_order(device, own, source, piece) for source in (test.pinned(count_bytes), store))
    with OtherProcess(test, arena) as other:
        found = {
            "plain pinned tensor": rate(test, device, count_bytes, plain),
            "this process": rate(test, device, count_bytes, copy),
            "the other process": other.ask("rate"),
        }
        other.begin("rate")
        found["this process, both at once"] = rate(test, device, count_bytes, copy)
        found["the other process, both at once"] = other.answer()
        holds = device.pinned and other.pinned and same(own, store) and other.ask("right")
    device.close()
    arena.close()
    return {"holds": holds, "bytes_per_s": found}


def measure_ipc(test: UnderTest) -> dict[str, Any]:
    """Measure bytes a second, and microseconds from an order to its end, of compute and of another process.

    `holds`: what the other process copied arrived.
    """
    device, count_bytes = test.open(), test.scale.store_bytes
    arena = Arena.create("ipc", count_bytes)
    arena.array[:] = pattern(count_bytes)
    store, slots = device.register_store(arena.array), device.allocate(count_bytes)
    copy, free_bytes = in_order(device, slots, store, test.scale.pieces_bytes[-1]), device.free_bytes()
    with OtherProcess(test, arena, slots) as other:
        context_bytes = free_bytes - device.free_bytes()
        slots.zero_()
        rates = {"the loader, through IPC": other.ask("rate")}
        holds = same(slots, store)
        rates["compute itself"] = rate(test, device, count_bytes, copy)
        orders = test.scale.orders
        waits = {
            "compute itself": _median_us(orders, lambda: copy_one(test, device, slots, store)),
            "the loader, through IPC": _median_us(orders, lambda: other.ask("one")),
        }
    device.close()
    arena.close()
    return {"holds": holds, "bytes_per_s": rates, "order_to_done_us": waits, "context_bytes": context_bytes}


def _median_us(count: int, run: Callable[[], Any]) -> float:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)
