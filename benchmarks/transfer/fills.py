"""Fill slots with experts through a real transfer engine, and measure the time and the processor time of it."""

from __future__ import annotations

import mmap
import queue
import resource
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.loader.transfer.expert_sources import FileSource
from expertflow.workers.loader.transfer.transfers import Transfer, TransferEngine

MB = 1 << 20


class Spent(NamedTuple):
    """Hold seconds of wall time, and of processor time of all threads of this process."""

    wall_s: float
    cpu_s: float


class Stopwatch:
    """Measure from its making on."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), _cpu_s()

    def read(self) -> Spent:
        """Return what was spent so far."""
        return Spent(time.perf_counter() - self._wall_s, _cpu_s() - self._cpu_s)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def touched_memory(count_bytes: int) -> np.ndarray:
    """Return block-aligned bytes, uint8 [count_bytes], whose pages are there."""
    memory = np.frombuffer(mmap.mmap(-1, count_bytes), dtype=np.uint8)
    memory[:] = 1
    return memory


def fill_slots(
    survey: Survey, experts: Sequence[tuple[int, int]], memory: np.ndarray, readers: int, in_flight: int
) -> Spent:
    """Fill the slots of `memory` in turn with these experts (layer, expert), `in_flight` of them on the way.

    Raises what a transfer failed with.
    """
    done: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
    slots = memory.size // survey.stride_bytes
    engine = TransferEngine(FileSource(survey), memory, survey.stride_bytes, readers, done.put, time.monotonic_ns)
    try:
        watch = Stopwatch()
        for number, (layer, expert) in enumerate(experts):
            if number >= in_flight:
                _check(done.get())
            engine.start(number % slots, layer, expert, urgent=False)
        for _ in range(min(in_flight, len(experts))):
            _check(done.get())
        return watch.read()
    finally:
        engine.close()


def _check(transfer: Transfer) -> None:
    if transfer.error is not None:
        raise transfer.error
