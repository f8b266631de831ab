"""How fast copies from host memory are: from a plain pinned tensor, from shared memory that was registered, and from
pageable memory; in pieces as large as experts."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch
from expertflow.ipc.memory import Arena
from expertflow.workers.compute.device.cuda import CudaDevice

MIB = 2**20
STORE_BYTES = 512 * MIB
PIECES_BYTES = (MIB, 4 * MIB, 16 * MIB, 64 * MIB)
REPEATS = 5
LEAST_SHARE = 0.85


def measure_rates() -> dict[str, Any]:
    device = CudaDevice(0)
    arena = Arena.create("rates", STORE_BYTES)
    began = time.perf_counter()
    registered = device.adopt(arena.array)
    sources = {
        "pinned": torch.empty(STORE_BYTES, dtype=torch.uint8, pin_memory=True),
        "registered": registered,
        "pageable": torch.from_numpy(np.ones(STORE_BYTES, dtype=np.uint8)),
    }
    target = device.allocate(STORE_BYTES)
    rows = [
        {"piece_mib": piece // MIB, **{name: copy_rate(device, target, each, piece) for name, each in sources.items()}}
        for piece in PIECES_BYTES
    ]
    shares = [row["registered"] / row["pinned"] for row in rows]
    device.close()
    return {
        "holds": min(shares) >= LEAST_SHARE and device.facts()["pinned_bytes"] == STORE_BYTES,
        "device": torch.cuda.get_device_name(),
        "registering_s": device.facts()["pinning_s"],
        "all_s": time.perf_counter() - began,
        "rows": rows,
    }


def copy_rate(device: CudaDevice, target: torch.Tensor, source: torch.Tensor, piece_bytes: int) -> float:
    """Bytes a second, median over repeats, of pieces that follow each other on the copy stream."""
    rates = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for at in range(0, len(target), piece_bytes):
            device.copies.copy(target[at : at + piece_bytes], source[at : at + piece_bytes])
        device.copies.record().wait()
        rates.append(len(target) / (time.perf_counter() - started))
    return statistics.median(rates)
