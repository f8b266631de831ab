"""A GPU through torch.cuda, imported only if the configuration asks for one; written against torch 2.10 to 2.13."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....configs.sizes import format_size
from ....errors import BudgetError, EngineError, UsageError
from ..experts.routing import DeferredRoutes
from .base import DeviceEvent
from .grouped_product import GroupedProduct

PORTABLE = 1
"""Value of cudaHostRegisterPortable."""
REMEDY = "Install a CUDA build of torch, or use device = cpu"
NO_TRITON = "Triton is not installed"


class CudaEvent:
    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def done(self) -> bool:
        return self.event.query()

    def wait(self) -> None:
        self.event.synchronize()


class CudaStream:
    """A stream of torch.cuda. If it is torch's `current` stream, kernels are launched without switching streams."""

    def __init__(self, stream: torch.cuda.Stream, current: bool = False) -> None:
        self.stream, self._current = stream, current

    def launch(self, kernel: Callable[[], None]) -> None:
        if self._current:
            return kernel()
        with torch.cuda.stream(self.stream):
            return kernel()

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Enqueue a copy of uint8 [bytes]; it blocks the host only if `source` is not pinned."""
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)

    def wait(self, event: DeviceEvent) -> None:
        if isinstance(event, CudaEvent):
            self.stream.wait_event(event.event)

    def record(self) -> CudaEvent:
        event = torch.cuda.Event()
        event.record(self.stream)
        return CudaEvent(event)


class CudaDevice:
    """A GPU as a `Device`; it becomes torch's current device, so a process has one."""

    def __init__(self, index: int = 0) -> None:
        """Open GPU `index`. Raises UsageError if torch cannot use it."""
        require_cuda(index)
        torch.cuda.set_device(index)
        # float32 stays float32 (I1b): by default torch rounds it to TF32 in convolutions.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.name, self.torch_device = f"cuda:{index}", torch.device("cuda", index)
        self.kernels = CudaStream(torch.cuda.current_stream(), current=True)
        self.copies, self.urgent = CudaStream(torch.cuda.Stream()), CudaStream(torch.cuda.Stream())
        self._side = torch.cuda.Stream()
        self._registered: list[np.ndarray] = []
        """Registered stores, kept mapped: CUDA would otherwise read unmapped pages."""
        self._pinned_bytes, self._pinning_s = 0, 0.0

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0]

    def limit_memory(self, count_bytes: int) -> None:
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min((torch.cuda.memory_reserved() + count_bytes) / total, 1.0))

    def allocate(self, count_bytes: int) -> Tensor:
        """Return device memory, uint8 [count_bytes]. Raises BudgetError if it is not free."""
        try:
            memory = torch.empty(count_bytes, dtype=torch.uint8, device=self.torch_device)
            torch.cuda.synchronize()  # earlier uses of this memory, in other streams than copies, are over
            return memory
        except torch.OutOfMemoryError as error:
            free, total = torch.cuda.mem_get_info()
            what = f"cannot allocate {format_size(count_bytes)}: {format_size(free)} of {format_size(total)} are free"
            raise BudgetError(what, self.name, "Lower expert_memory") from error

    def register_store(self, store: np.ndarray) -> Tensor:
        """Return the store, uint8 [bytes], pinned if CUDA can register it."""
        started = time.monotonic()
        if store.size and self._register(store):
            self._pinned_bytes = store.size
        self._pinning_s = time.monotonic() - started
        return torch.from_numpy(store)

    def upload(self, array: np.ndarray) -> Tensor:
        """Copy through pinned memory of torch's allocator, which reuses it only after the copy."""
        return torch.from_numpy(array).pin_memory().to(self.torch_device, non_blocking=True)

    def fetch(self, tensor: Tensor) -> DeferredRoutes:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        copied = torch.cuda.current_stream().record_event()

        def read() -> np.ndarray:
            copied.synchronize()
            return host.numpy()

        return read

    def grouped_product(self, experts: int, dtype: torch.dtype) -> GroupedProduct | None:
        return open_grouped_product(experts, dtype, self.torch_device)

    def join_kernels(self) -> None:
        """Do nothing: torch's own operations run in the stream of kernels."""

    @contextmanager
    def side_stream(self, after: DeviceEvent) -> Iterator[None]:
        if isinstance(after, CudaEvent):
            self._side.wait_event(after.event)
        with torch.cuda.stream(self._side):
            yield

    @property
    def pinned(self) -> bool:
        return bool(self._registered)

    def require_usable(self) -> None:
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            what = f"is lost to this process: {str(error).splitlines()[0]}"
            raise EngineError(what, self.name, "Look into the system's log for errors of the GPU") from error

    def facts(self) -> dict[str, int | float | str]:
        return {
            "device": f"{self.name} ({torch.cuda.get_device_name()})",
            "pinned_bytes": self._pinned_bytes,
            "pinning_s": round(self._pinning_s, 3),
        }

    def close(self) -> None:
        torch.cuda.synchronize()
        for store in self._registered:
            _runtime().cudaHostUnregister(store.ctypes.data)
        self._registered.clear()

    def _register(self, store: np.ndarray) -> bool:
        """Pin the store in one piece: a copy must not cross from one registered range into another."""
        code = _runtime().cudaHostRegister(store.ctypes.data, store.size, PORTABLE)
        if int(code) == 0:
            self._registered.append(store)
            return True
        self._clear_error()
        words = "%s of host memory cannot be pinned (CUDA error %d): copies to %s are slower and block compute"
        logging.getLogger(__name__).warning(words, format_size(store.size), int(code), self.name)
        return False

    def _clear_error(self) -> None:
        """Clear the error of a failed call, which CUDA would report at the next kernel."""
        with suppress(RuntimeError):
            torch.arange(2, device=self.torch_device)  # launching a kernel reads, and so clears, the last error
            torch.cuda.synchronize()


def _runtime() -> Any:
    """Return the CUDA runtime that torch has loaded."""
    return torch.cuda.cudart()


def require_cuda(index: int) -> None:
    """Check for GPU `index`. Raises UsageError if torch has no CUDA, or no such GPU."""
    if torch.version.cuda is None:
        raise UsageError(f"torch {torch.__version__} is built without CUDA", "device", REMEDY)
    if not torch.cuda.is_available():
        raise UsageError("torch finds no usable GPU", "device", "Check the driver (nvidia-smi), or use device = cpu")
    count = torch.cuda.device_count()
    if index >= count:
        raise UsageError(f"there is no GPU {index}: torch finds {count}", "device", "Give cuda:0, or another number")


def open_grouped_product(experts: int, dtype: torch.dtype, where: torch.device) -> GroupedProduct | None:
    """Build the Triton kernel for layers of up to `experts` experts of this dtype.

    Returns None, with a warning, if it cannot be built: besides Triton it takes a C compiler with Python's headers, and
    a GPU that multiplies this dtype. Running it once here finds that out before the first step, whose rows would fail.
    """
    try:
        return _build_product(experts, dtype, where)
    except Exception as error:  # noqa: BLE001 - whatever Triton, a compiler or a linker says, torch's products remain
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        words = "no grouped kernel on %s (%s): every expert is a launch of its own, which is slower"
        logging.getLogger(__name__).warning(words, where, reason)
        return None


def _build_product(experts: int, dtype: torch.dtype, where: torch.device) -> GroupedProduct:
    if find_spec("triton") is None:
        raise ModuleNotFoundError(NO_TRITON)
    from .triton_product import TritonProduct

    product = TritonProduct(experts)
    product.try_out(dtype, where)
    return product
