"""Rate at which the files of a model can be read past the page cache, as the loader reads experts: measured shortly."""

from __future__ import annotations

import errno
import mmap
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from ...errors import CheckpointError

LIMIT_S = 1.0
MAX_BYTES = 512 << 20
READ_BYTES = 4 << 20
"""Bytes of one read, as in the loader."""
BLOCK_BYTES = 4096
MIN_READS = 2
"""Reads of each thread, however long they take: the first one also wakes the disk."""
MEMORY_SYSTEMS = ("tmpfs", "ramfs", "hugetlbfs")


class DiskRate(msgspec.Struct, frozen=True, kw_only=True):
    """A measured rate of reading."""

    bytes_per_s: float
    read_bytes: int
    seconds: float
    direct: bool
    """Read past the page cache; False: the file system cannot, so pages were dropped before."""
    file_system: str
    """Type of the file system, such as ext4; empty: not known."""

    @property
    def in_memory(self) -> bool:
        """Return whether the files themselves lie in memory."""
        return self.file_system in MEMORY_SYSTEMS


def measure_disk_rate(files: Sequence[Path], readers: int, limit_s: float = LIMIT_S) -> DiskRate:
    """Read random stretches of `files` with so many threads for at most about `limit_s`, and return the rate.

    Raises CheckpointError if a file cannot be read.
    """
    try:
        return _measure(list(files), readers, limit_s)
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise CheckpointError(what, str(error.filename or files[0]), "Check the disk and the permissions") from error


def _measure(files: list[Path], readers: int, limit_s: float) -> DiskRate:
    opened = [_open(file) for file in files]
    try:
        places = _places(opened)
        begun = time.perf_counter()
        with ThreadPoolExecutor(readers) as pool:
            work = [pool.submit(_read_in_turn, places[reader::readers], begun + limit_s) for reader in range(readers)]
            read_bytes = sum(each.result() for each in work)
        seconds = time.perf_counter() - begun
    finally:
        for descriptor, _ in opened:
            os.close(descriptor)
    return DiskRate(
        bytes_per_s=read_bytes / seconds,
        read_bytes=read_bytes,
        seconds=seconds,
        direct=all(direct for _, direct in opened),
        file_system=file_system_of(files[0]),
    )


def _open(file: Path) -> tuple[int, bool]:
    """Return a descriptor and whether it reads past the page cache; if it does not, the file's pages are dropped."""
    try:
        return os.open(file, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return descriptor, False


def _places(opened: list[tuple[int, bool]]) -> list[tuple[int, int]]:
    """Return descriptor and offset of reads that do not overlap, in random order, `MAX_BYTES` in all at most."""
    places = [
        (descriptor, offset)
        for descriptor, _ in opened
        for offset in range(0, max(os.fstat(descriptor).st_size, 1), READ_BYTES)
    ]
    random.Random(0).shuffle(places)
    return places[: MAX_BYTES // READ_BYTES]


def _read_in_turn(places: list[tuple[int, int]], deadline_s: float) -> int:
    """Return the bytes read until the deadline, which the first `MIN_READS` do not heed."""
    read_bytes, memory = 0, mmap.mmap(-1, READ_BYTES)
    for done, (descriptor, offset) in enumerate(places):
        if done >= MIN_READS and time.perf_counter() > deadline_s:
            break
        read_bytes += os.preadv(descriptor, [memory], offset)
    return read_bytes


def file_system_of(file: Path, mounts: Callable[[], str] = lambda: Path("/proc/self/mountinfo").read_text()) -> str:
    """Return the type of the file system of a file; empty if it is not known."""
    device = os.stat(file).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts().splitlines():
        fields, _, details = line.partition(" - ")
        if fields.split()[2] == number:
            return details.split()[0]
    return ""
