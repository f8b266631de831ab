"""How fast copies from host memory are, in pieces as large as experts: from a plain pinned tensor, from shared memory
that was registered, from the same as the engine orders them (into slots in any order, each with an event of its own),
and from pageable memory."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from expertflow.ipc.messages import Copy
from expertflow.ipc.shared.memory import Arena
from expertflow.workers.compute.device.base import Device
from expertflow.workers.compute.device.copy_scheduler import CopyScheduler
from torch import Tensor

from .under_test import UnderTest


def measure_rates(test: UnderTest) -> dict[str, Any]:
    """Bytes a second. `holds`: the store could be registered."""
    device, count_bytes = test.open(), test.scale.store_bytes
    arena = Arena.create("rates", count_bytes)
    began = time.perf_counter()
    store = device.adopt(arena.array)
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
    """Bytes a second, median over repeats; what is done once before is not counted."""
    enqueue()
    return statistics.median(count_bytes / test.seconds(device, enqueue) for _ in range(test.scale.repeats))


def in_order(device: Device, target: Tensor, source: Tensor, piece_bytes: int) -> Callable[[], None]:
    """Enqueues pieces that follow each other."""

    def enqueue() -> None:
        for at in range(0, len(target), piece_bytes):
            device.copies.copy(target[at : at + piece_bytes], source[at : at + piece_bytes])

    return enqueue


def as_ordered(device: Device, target: Tensor, store: Tensor, piece_bytes: int) -> Callable[[], None]:
    """Enqueues them as compute does when the loader orders copies of experts."""
    traffic = CopyScheduler(device, target, store, piece_bytes, lambda expert: piece_bytes)
    slots = list(range(len(target) // piece_bytes))
    places = random.Random(0).sample(slots, len(slots))

    def enqueue() -> None:
        traffic.release(slots)
        for slot, place in zip(slots, places, strict=True):
            traffic.copy(Copy(slot, slot, 0, slot, place))
            traffic.finished()

    return enqueue
