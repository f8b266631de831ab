"""Two processes over one host store: both register it, and either copies into the slots of one of them: compute's own
copies, as ExpertFlow does it, or the loader's through CUDA IPC."""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from expertflow.ipc.memory import Arena
from expertflow.workers.compute.device.cuda import CudaDevice

MIB = 2**20
STORE_BYTES, PIECE_BYTES = 256 * MIB, 4 * MIB
ORDERS = 100
ANSWER_S = 40


def measure_sharing() -> dict[str, Any]:
    device = CudaDevice(0)
    arena = Arena.create("sharing", STORE_BYTES)
    store, slots = device.adopt(arena.array), device.allocate(STORE_BYTES)
    context = torch.multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    loader = context.Process(target=serve, args=(theirs, slots, os.getpid(), arena.fd), daemon=True)
    loader.start()
    try:
        result = {"other_process": _answer(mine), **_compare(device, slots, store, mine)}
        mine.send(None)
        loader.join(ANSWER_S)
    finally:
        if loader.is_alive():
            loader.terminate()
    device.close()
    return result


def _compare(device: CudaDevice, slots: torch.Tensor, store: torch.Tensor, pipe: Any) -> dict[str, Any]:
    own_rate = _rate(lambda: copy_all(device, slots, store))
    other_rate = _ask(pipe, "all")
    pipe.send("all")
    both_own = _rate(lambda: copy_all(device, slots, store))
    return {
        "compute_bytes_per_s": own_rate,
        "loader_bytes_per_s": other_rate,
        "both_at_once_bytes_per_s": [both_own, _answer(pipe)],
        "compute_order_to_done_us": _median_us(lambda: copy_one(device, slots, store)),
        "loader_order_to_done_us": _median_us(lambda: _ask(pipe, "one")),
        "piece_bytes": PIECE_BYTES,
    }


def serve(pipe: Any, slots: torch.Tensor, owner: int, fd: int) -> None:
    """The loader's side, in its own process with its own context."""
    device = CudaDevice(0)
    shared = os.open(f"/proc/{owner}/fd/{fd}", os.O_RDWR)
    store = device.adopt(np.frombuffer(mmap.mmap(shared, STORE_BYTES), dtype=np.uint8))
    pipe.send({"pinned": device.pinned, "context_bytes": torch.cuda.mem_get_info()[0]})
    while (order := pipe.recv()) is not None:
        if order == "all":
            pipe.send(_rate(lambda: copy_all(device, slots, store)))
        else:
            copy_one(device, slots, store)
            pipe.send(True)
    device.close()


def copy_all(device: CudaDevice, slots: torch.Tensor, store: torch.Tensor) -> None:
    for at in range(0, STORE_BYTES, PIECE_BYTES):
        device.copies.copy(slots[at : at + PIECE_BYTES], store[at : at + PIECE_BYTES])
    device.copies.record().wait()


def copy_one(device: CudaDevice, slots: torch.Tensor, store: torch.Tensor) -> None:
    device.copies.copy(slots[:PIECE_BYTES], store[:PIECE_BYTES])
    device.copies.record().wait()


def _rate(copy: Callable[[], None]) -> float:
    copy()
    started = time.perf_counter()
    copy()
    return STORE_BYTES / (time.perf_counter() - started)


def _median_us(run: Callable[[], Any]) -> float:
    times = []
    for _ in range(ORDERS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)


def _ask(pipe: Any, order: str) -> Any:
    pipe.send(order)
    return _answer(pipe)


def _answer(pipe: Any) -> Any:
    if not pipe.poll(ANSWER_S):
        raise TimeoutError("the other process does not answer")
    return pipe.recv()
