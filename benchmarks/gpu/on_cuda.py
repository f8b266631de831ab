"""Put a GPU under test: every call of this check that CUDA has to answer."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from expertflow.workers.compute.device.base import Device
from expertflow.workers.compute.device.cuda import CudaDevice, CudaStream, require_cuda
from torch import Tensor

from ..models import folder_of
from .under_test import Scale

MIB = 2**20
CYCLES = 3_000_000
"""About two milliseconds: far longer than a copy of a tiny expert, or its kernels."""
SCALE = Scale(
    families=("olmoe", "mixtral", "qwen3_moe", "qwen3_next", "gpt_oss", "deepseek_v2", "deepseek_v3", "glm4_moe"),
    store_bytes=512 * MIB,
    pieces_bytes=(MIB, 4 * MIB, 16 * MIB, 64 * MIB),
    repeats=5,
    orders=100,
    batches=(1, 8, 32),
    prompt=32,
    steps=40,
    warm=4,
    patience_s=10.0,
    kv_memory="1GiB",
)


class LateCopies(CudaStream):
    """Begin every copy late."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(CYCLES)
        super().copy(target, source)


class LateKernels(CudaStream):
    """Begin every kernel of an expert late."""

    def launch(self, kernel: Callable[[], None]) -> None:
        torch.cuda._sleep(CYCLES)
        super().launch(kernel)


class OnCuda:
    """Implement `UnderTest` on a GPU."""

    scale, device, where = SCALE, "cuda", "cuda"

    def __init__(self) -> None:
        require_cuda(0)

    def open(self) -> CudaDevice:
        return CudaDevice(0)

    def late(self, copies: bool) -> CudaDevice:
        device = CudaDevice(0)
        if copies:
            device.copies, device.urgent = LateCopies(torch.cuda.Stream()), LateCopies(torch.cuda.Stream())
        else:
            device.kernels = LateKernels(torch.cuda.current_stream(), current=True)
        return device

    def pinned(self, count_bytes: int) -> Tensor:
        return torch.empty(count_bytes, dtype=torch.uint8, pin_memory=True)

    def seconds(self, device: Device, enqueue: Callable[[], None]) -> float:
        assert isinstance(device, CudaDevice)
        stream = device.copies.stream
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record(stream)
        enqueue()
        last.record(stream)
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    def facts(self) -> dict[str, Any]:
        free, total = torch.cuda.mem_get_info()
        return {
            "device": torch.cuda.get_device_name(),
            "memory_bytes": total,
            "free_bytes": free,
            "torch": torch.__version__,
            "CUDA": torch.version.cuda,
            "transformers": version("transformers"),
            "cores": os.cpu_count(),
        }

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated()

    def offloading(self, kept_bytes: int, folder: Path) -> dict[str, Any]:
        return {"device_map": "auto", "max_memory": {0: kept_bytes, "cpu": 10**15}}

    def model_folder(self, name: str, folder: Path) -> Path:
        return folder_of(name)
