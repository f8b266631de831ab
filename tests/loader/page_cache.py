"""Which pages of a file the kernel holds in its page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np


def drop_pages(file: Path) -> None:
    """Write a file back and drop it from the page cache."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def cached_pages(file: Path) -> int:
    """Pages of the file that are in the page cache (mincore)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped:
        view = np.frombuffer(mapped, dtype=np.uint8)
        pages = np.zeros(-(-view.size // mmap.PAGESIZE), dtype=np.uint8)
        failed = libc.mincore(
            ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(view.size), ctypes.c_void_p(pages.ctypes.data)
        )
        del view
    if failed:
        raise OSError(ctypes.get_errno(), "mincore", str(file))
    return int((pages & 1).sum())
