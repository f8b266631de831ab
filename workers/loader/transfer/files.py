"""Reads checkpoint bytes into memory, past the page cache where the file system allows it."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

import msgspec
import numpy as np

from ....errors import CheckpointError
from ...checkpoint.layout import ByteRun
from ...checkpoint.stamps import FileStamp, check_stamp

CHUNK_BYTES = 1 << 20
"""Largest part of a read through a buffer."""
READ_BYTES = 4 << 20
"""Rough size of a read straight into its slot: half the CPU of reads of 1 MB, at their rate."""
BLOCK_BYTES = 4096


class ByteRange(msgspec.Struct, frozen=True):
    """Range of `count_bytes` from `offset_bytes` of a file to `start_bytes` of memory.

    `lands`: both are block-aligned and the rest of the last block is free, so a direct read needs no bounce.
    """

    start_bytes: int
    offset_bytes: int
    count_bytes: int
    lands: bool
    lead_bytes: int = 0
    """Bytes at its start that are not of the expert, but of the same block."""
    check: str = ""
    """Type of the scales that it holds, none of which may be NaN; empty: it holds none."""
    tensor: int = 0
    """Slot tensor that it is a part of."""

    @property
    def own(self) -> slice:
        """Return the places in memory of its bytes that are the expert's."""
        return slice(self.start_bytes + self.lead_bytes, self.start_bytes + self.count_bytes)

    @property
    def end_bytes(self) -> int:
        """Return the offset in the file behind its last byte."""
        return self.offset_bytes + self.count_bytes

    @property
    def whole_bytes(self) -> int:
        """Return the count with the rest of the last block."""
        return self.count_bytes + -self.count_bytes % BLOCK_BYTES


def chunk_spans(run: ByteRun, base_bytes: int, guarded: bool) -> list[ByteRange]:
    """Split the run into chunks of equal size, for a slot that starts at `base_bytes`.

    `guarded`: slots are laid out for direct reads, with room for whole blocks around each tensor. Without it no chunk
    may land: the other bytes of its blocks would overwrite the neighbours.
    """
    start, offset, count = base_bytes + run.position_bytes, run.offset_bytes, run.count_bytes
    lead = offset % BLOCK_BYTES
    lands = guarded and run.opens and start % BLOCK_BYTES == lead
    if lands:
        start, offset, count = start - lead, offset - lead, count + lead
    max_bytes = _equal_parts(count, READ_BYTES) if lands else CHUNK_BYTES
    spans = []
    for at in range(0, count, max_bytes):
        size = min(max_bytes, count - at)
        fits = lands and (run.closes or size % BLOCK_BYTES == 0)
        own_lead = lead if lands and at == 0 else 0
        spans.append(ByteRange(start + at, offset + at, size, fits, own_lead, run.check, run.tensor))
    return spans


def _equal_parts(count_bytes: int, about_bytes: int) -> int:
    """Return a part size in whole blocks that leaves no small last part.

    A read of one block takes a tenth of the time of one of 1 MB.
    """
    size = -(-count_bytes // max(round(count_bytes / about_bytes), 1))
    return size + -size % BLOCK_BYTES


def join_spans(spans: list[ByteRange]) -> list[list[ByteRange]]:
    """Group spans of one file, given in its order, by the reads that can bring them.

    Spans of one read land, and each begins in the block in which the one before ends, or in the next; or they are so
    near and small that they fit a bounce buffer together.
    """
    joined: list[list[ByteRange]] = []
    for span in spans:
        if joined and (_follows(joined[-1], span) or _is_near(joined[-1], span)):
            joined[-1].append(span)
        else:
            joined.append([span])
    return joined


def _follows(earlier: list[ByteRange], span: ByteRange) -> bool:
    total = sum(one.count_bytes for one in earlier) + span.count_bytes
    return scatters([*earlier, span]) and 2 * total <= 3 * READ_BYTES


def _is_near(earlier: list[ByteRange], span: ByteRange) -> bool:
    gap = span.offset_bytes + span.lead_bytes - earlier[-1].end_bytes
    stretch = span.end_bytes - earlier[0].offset_bytes - earlier[0].lead_bytes
    return 0 <= gap <= BLOCK_BYTES and stretch <= CHUNK_BYTES


def scatters(spans: list[ByteRange]) -> bool:
    """Return whether one read can bring spans to their places, each sharing no more than a block with the next."""
    pairs = zip(spans, spans[1:], strict=False)
    return all(span.lands for span in spans) and all(
        earlier.offset_bytes + earlier.whole_bytes - later.offset_bytes in (0, BLOCK_BYTES)
        and later.count_bytes > BLOCK_BYTES
        for earlier, later in pairs
    )


class BounceBuffer:
    """Block-aligned scratch memory of one reader thread."""

    def __init__(self, max_bytes: int = CHUNK_BYTES) -> None:
        self._memory = mmap.mmap(-1, max_bytes + 2 * BLOCK_BYTES)
        self.array = np.frombuffer(self._memory, dtype=np.uint8)


class CheckpointFile:
    """One safetensors file, opened for direct reads if possible (else buffered, and the pages dropped after use)."""

    def __init__(self, path: str, direct: bool, stamp: FileStamp | None = None) -> None:
        """Open the file. Raises OSError if that fails, CheckpointError if the file differs from its `stamp`."""
        self.path = path
        self.direct = direct
        self._stamp = stamp
        self._descriptor = self._open(path)
        try:
            self.check()
        except CheckpointError:
            self.close()
            raise

    def _open(self, path: str) -> int:
        if self.direct:
            try:
                return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._go_buffered(descriptor)
        return descriptor

    def _go_buffered(self, descriptor: int) -> None:
        self.direct = False
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        # Read-ahead would bring pages that nobody drops.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def check(self) -> None:
        """Compare the file with its stamp. Raises CheckpointError.

        If this passes after a read, the bytes read are those of the surveyed file: a write changes the time of the file
        before its bytes. Takes about a microsecond.
        """
        if self._stamp is not None:
            check_stamp(self.path, self._stamp, os.fstat(self._descriptor))

    def close(self) -> None:
        """Close the descriptor, once: closing it twice might close another file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def read(self, memory: np.ndarray, span: ByteRange, bounce: BounceBuffer) -> None:
        """Read `span` into `memory`, uint8 [bytes], block-aligned. Raises OSError when the file is too short."""
        if self.direct:
            try:
                return self._read_direct(memory, span, bounce)
            except OSError as error:
                # Some file systems take O_DIRECT at open and refuse the read, or want larger blocks.
                if error.errno != errno.EINVAL:
                    raise
            self._go_buffered(self._descriptor)
        return self._read_buffered(memory, span)

    def read_joined(self, memory: np.ndarray, spans: list[ByteRange], bounce: BounceBuffer) -> None:
        """Read spans that `join_spans` grouped into `memory`, uint8 [bytes], block-aligned.

        Raises OSError as `read`.
        """
        if len(spans) > 1 and not scatters(spans):
            self._read_stretch(memory, spans, bounce)
            return
        if len(spans) > 1 and self.direct and self._read_scattered(memory, spans):
            return
        for span in spans:
            self.read(memory, span, bounce)

    def view(self, offset_bytes: int, count_bytes: int, bounce: BounceBuffer) -> np.ndarray:
        """Return bytes of the file, uint8 [count_bytes], as a view of `bounce`. Raises OSError as `read`."""
        lead = offset_bytes % BLOCK_BYTES
        self.read(bounce.array, ByteRange(0, offset_bytes - lead, lead + count_bytes, lands=True), bounce)
        return bounce.array[lead : lead + count_bytes]

    def _read_stretch(self, memory: np.ndarray, spans: list[ByteRange], bounce: BounceBuffer) -> None:
        start = spans[0].offset_bytes + spans[0].lead_bytes
        data = self.view(start, spans[-1].end_bytes - start, bounce)
        for span in spans:
            memory[span.own] = data[span.offset_bytes + span.lead_bytes - start : span.end_bytes - start]

    def _read_direct(self, memory: np.ndarray, span: ByteRange, bounce: BounceBuffer) -> None:
        if span.lands:
            self._read_exactly(memory[span.start_bytes :][: span.whole_bytes], span.offset_bytes, span.count_bytes)
        else:
            self._read_bounced(memory[span.start_bytes :][: span.count_bytes], span.offset_bytes, bounce)

    def _read_scattered(self, memory: np.ndarray, spans: list[ByteRange]) -> bool:
        """Read all spans at once. Return False if the kernel read less, or refused.

        A block that two spans share is read with the first and copied to the other.
        """
        first, last = spans[0], spans[-1]
        buffers, shared, end = [], [], first.offset_bytes
        for span in spans:
            overlap = end - span.offset_bytes
            buffers.append(memory[span.start_bytes + overlap : span.start_bytes + span.whole_bytes].data)
            if overlap:
                shared.append((span.start_bytes, buffers[-2]))
            end = span.offset_bytes + span.whole_bytes
        try:
            count = os.preadv(self._descriptor, buffers, first.offset_bytes)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        for start, before in shared:
            memory[start : start + BLOCK_BYTES] = np.frombuffer(before[-BLOCK_BYTES:], dtype=np.uint8)
        return count >= last.offset_bytes + last.count_bytes - first.offset_bytes

    def _read_buffered(self, memory: np.ndarray, span: ByteRange) -> None:
        self._read_exactly(memory[span.start_bytes :][: span.count_bytes], span.offset_bytes, span.count_bytes)
        # Whole pages: the kernel keeps those that a range only touches.
        low = span.offset_bytes - span.offset_bytes % mmap.PAGESIZE
        high = span.offset_bytes + span.count_bytes
        os.posix_fadvise(self._descriptor, low, high + -high % mmap.PAGESIZE - low, os.POSIX_FADV_DONTNEED)

    def _read_bounced(self, target: np.ndarray, offset_bytes: int, bounce: BounceBuffer) -> None:
        at = 0
        while at < target.size:
            lead = (offset_bytes + at) % BLOCK_BYTES
            count = min(target.size - at, CHUNK_BYTES)
            whole = lead + count + -(lead + count) % BLOCK_BYTES
            self._read_exactly(bounce.array[:whole], offset_bytes + at - lead, lead + count)
            target[at : at + count] = bounce.array[lead : lead + count]
            at += count

    def _read_exactly(self, target: np.ndarray, offset_bytes: int, least_bytes: int) -> None:
        done = 0
        while done < least_bytes:
            count = os.preadv(self._descriptor, [target[done:].data], offset_bytes + done)
            if count == 0:
                raise OSError(errno.EIO, f"the file ends {least_bytes - done} bytes early", self.path)
            done += count
