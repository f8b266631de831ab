"""Checks of what was read: one more try after an error of the disk, and checksums of the stored bytes of experts.

A checksum is of an expert's bytes as they are in its files, before any conversion, a number for each file. Parts may be
read in any order, in any size and by any thread: CRC-32 values of the parts are shifted to their places in the file and
combined. So a checksum does not depend on where an expert lies in its slot, nor on the budget.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from ....errors import CheckpointError, UsageError
from .files import BounceBuffer

RETRY_S = 0.05
"""Pause before a failed read is tried again: an error of a network or a disk may last for a moment."""
EXTRA = "Install the extra: pip install 'expertflow-runtime[checksums]'"
_END_BYTES = 1 << 44
"""Place beyond the end of every file, to which checksums are shifted."""

Chunk = Callable[[BounceBuffer], None]
"""Part of a transfer, run on a reader thread with its bounce buffer."""
Sums = dict[int, int]
"""File -> checksum of the bytes of one expert in that file."""


class ReadFaults:
    """Counts of what went wrong and was mended, over all reader threads."""

    def __init__(self) -> None:
        self.retries = 0
        """Reads that failed and were tried again."""
        self.mismatches = 0
        """Experts whose bytes did not have their checksum and were read again."""
        self._lock = threading.Lock()

    def add_retry(self) -> None:
        with self._lock:
            self.retries += 1

    def add_mismatch(self) -> None:
        with self._lock:
            self.mismatches += 1

    def counters(self) -> dict[str, int | float]:
        """Return the counts by name."""
        return {"read_retries": self.retries, "checksum_mismatches": self.mismatches}


class RangeSums:
    """CRC-32 of ranges of files, as numbers that `Tally` adds."""

    def __init__(self) -> None:
        """Raises UsageError if the library is missing."""
        try:
            from isal import isal_zlib
        except ImportError as error:
            raise UsageError("the package isal is missing", "verify_reads", EXTRA) from error
        self._crc32, self._combine = isal_zlib.crc32, isal_zlib.crc32_combine

    def plain(self, data: np.ndarray, offset_bytes: int) -> int:
        """Return the sum of bytes that are read once, uint8 [bytes]; sums of parts combine by `^`."""
        return self._combine(self._crc32(data), 0, _END_BYTES - offset_bytes - data.size)

    def converted(self, data: np.ndarray, offset_bytes: int) -> int:
        """Return the sum of bytes that are always read as this range; it may be read several times. Added by `+`."""
        return self._crc32(data, offset_bytes & 0xFFFFFFFF)


class Recorder:
    """Notes the ranges that the current thread reads, while it records."""

    def __init__(self) -> None:
        self.sums = RangeSums()
        self._own = threading.local()

    @contextmanager
    def recording(self) -> Iterator[Sums]:
        """Yield the sums of what the current thread reads inside."""
        self._own.found = found = Sums()
        try:
            yield found
        finally:
            self._own.found = None

    def note_plain(self, file: int, offset_bytes: int, data: np.ndarray) -> None:
        """Note bytes, uint8 [bytes], that were read from `offset_bytes` of a file straight into a slot."""
        if (found := getattr(self._own, "found", None)) is not None:
            add_sums(found, {file: self.sums.plain(data, offset_bytes) << 32})

    def note_converted(self, file: int, offset_bytes: int, data: np.ndarray) -> None:
        """Note bytes, uint8 [bytes], that are about to be converted."""
        if (found := getattr(self._own, "found", None)) is not None:
            add_sums(found, {file: self.sums.converted(data, offset_bytes)})


def add_sums(total: Sums, more: Sums) -> None:
    """Add sums to `total`: the upper halves by `^`, the lower ones modulo 2^32."""
    for file, one in more.items():
        before = total.get(file, 0)
        total[file] = ((before ^ one) & ~0xFFFFFFFF) | ((before + one) & 0xFFFFFFFF)


class ExpertCheck:
    """The check of one transfer: the thread that ends its last chunk compares, and reads all again if it must."""

    def __init__(
        self, recorder: Recorder, expected: Sums, faults: ReadFaults, refuse: Callable[[int], CheckpointError]
    ) -> None:
        """`refuse(file)` makes the error of an expert whose bytes in that file are wrong."""
        self._recorder, self._expected, self._faults, self._refuse = recorder, expected, faults, refuse
        self._chunks: list[Chunk] = []
        self._found = Sums()
        self._left = 0
        self._lock = threading.Lock()

    def watch(self, chunks: list[Chunk]) -> list[Chunk]:
        """Return the chunks of the transfer with the check."""
        self._chunks, self._left = chunks, len(chunks)
        return [self._watched(chunk) for chunk in chunks]

    def _watched(self, chunk: Chunk) -> Chunk:
        def run(bounce: BounceBuffer) -> None:
            with self._recorder.recording() as found:
                chunk(bounce)
            if self._is_last(found):
                self._compare(bounce)

        return run

    def _is_last(self, found: Sums) -> bool:
        with self._lock:
            add_sums(self._found, found)
            self._left -= 1
            return self._left == 0

    def _compare(self, bounce: BounceBuffer) -> None:
        """Raise CheckpointError if the bytes are wrong twice: a read may fail silently, a file stays wrong."""
        if self._found == self._expected:
            return
        self._faults.add_mismatch()
        again = Sums()
        for chunk in self._chunks:
            with self._recorder.recording() as found:
                chunk(bounce)
            add_sums(again, found)
        wrong = [file for file in {**self._expected, **again} if self._expected.get(file) != again.get(file)]
        if wrong:
            raise self._refuse(wrong[0])
        logging.getLogger(__name__).warning("an expert was read wrong once: its bytes are right the second time")


def retried(read: Chunk, path: str, faults: ReadFaults, recheck: Callable[[], None]) -> Chunk:
    """Return `read` with a second try after an OSError; a second error names the file.

    `recheck` raises CheckpointError if the file has changed, which explains the error.
    """

    def run(bounce: BounceBuffer) -> None:
        try:
            read(bounce)
        except OSError as error:
            recheck()
            faults.add_retry()
            logging.getLogger(__name__).warning("%s: a read failed (%s) and is tried again", path, error.strerror)
            time.sleep(RETRY_S)
            _read_again(read, path, bounce)

    return run


def _read_again(read: Chunk, path: str, bounce: BounceBuffer) -> None:
    try:
        read(bounce)
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or path) from error
