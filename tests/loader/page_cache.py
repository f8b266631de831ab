"""Which pages of a file the kernel holds in its page cache."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import numpy as np


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
