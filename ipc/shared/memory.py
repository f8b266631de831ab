"""Anonymous shared memory: it cannot leak, its size is sealed, all pages are allocated before use."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable
from functools import cached_property

import numpy as np

from ...configs.sizes import format_size
from ...errors import BudgetError
from .available import available_bytes

_CHUNK_BYTES = 64 * 2**20


class Arena:
    """A memfd and, on first use, its mapping. The kernel frees the memory when the last process has closed it."""

    def __init__(self, fd: int, size_bytes: int, name: str = "") -> None:
        self.fd = fd
        self.size_bytes = size_bytes
        self._name = name

    @classmethod
    def create(cls, name: str, size_bytes: int, on_progress: Callable[[int, int], None] | None = None) -> Arena:
        """Make an arena and allocate every page now, so that a lack of memory is an error here and no kill later.

        Calls `on_progress(done_bytes, size_bytes)` meanwhile. Raises BudgetError with the numbers.
        """
        arena = cls.reserve(name)
        try:
            arena.allocate(size_bytes, on_progress)
        except BaseException:
            arena.close()
            raise
        return arena

    @classmethod
    def reserve(cls, name: str) -> Arena:
        """Make an arena without memory, whose descriptor can be passed on already; `allocate` gives it its size."""
        return cls(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), 0, name)

    @classmethod
    def attach(cls, fd: int, size_bytes: int) -> Arena:
        """Return the arena that another process created and passed on as a descriptor."""
        return cls(fd, size_bytes)

    @cached_property
    def array(self) -> np.ndarray:
        """Return the memory, uint8 [size_bytes], writable (for `torch.from_numpy`); it keeps the mapping alive."""
        # Mapped at once: faults one by one cost the first direct read into each page ten times its own CPU time.
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        return np.frombuffer(mmap.mmap(self.fd, self.size_bytes, flags), dtype=np.uint8)

    def close(self) -> None:
        """Close the descriptor; the mapping ends with its last view."""
        self.__dict__.pop("array", None)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def allocate(self, size_bytes: int, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Allocate every page, once only; see `create`. Raises BudgetError with the numbers."""
        check_room(self._name, size_bytes)
        self.size_bytes = size_bytes
        os.ftruncate(self.fd, size_bytes)
        for start in range(0, size_bytes, _CHUNK_BYTES):
            count = min(_CHUNK_BYTES, size_bytes - start)
            try:
                os.posix_fallocate(self.fd, start, count)
            except OSError as error:
                raise _does_not_fit(self._name, size_bytes, start) from error
            if on_progress:
                on_progress(start + count, size_bytes)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)


def check_room(name: str, size_bytes: int) -> None:
    """Raise BudgetError if the machine (or this process's control group) has no room for `size_bytes`."""
    available = available_bytes()
    if size_bytes > available:
        raise _does_not_fit(name, size_bytes, available)


def _does_not_fit(name: str, size_bytes: int, available: int) -> BudgetError:
    return BudgetError(
        f"needs {format_size(size_bytes)} of shared memory, but only {format_size(available)} is available",
        f"shared memory '{name}'",
        "Give expert_memory or host_memory a smaller size, or free memory",
    )
