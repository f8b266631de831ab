"""Bytes of files arrive in memory unchanged and nowhere else, whatever their offsets and however they are read."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import numpy as np
import pytest
from expertflow.benchmarks.limits import drop_from_page_cache
from expertflow.tests.loader.arenas import CANARY, make_arena
from expertflow.tests.loader.layouts import SIZES_BYTES, SMALL_CHUNK_BYTES, reads_directly, write_random
from expertflow.tests.loader.page_cache import cached_pages
from expertflow.workers.checkpoint.layout import ByteRun
from expertflow.workers.loader.transfer.files import (
    BLOCK_BYTES,
    BounceBuffer,
    ByteRange,
    CheckpointFile,
    chunk_spans,
    join_spans,
)
from hypothesis import given
from hypothesis import strategies as st

Reads = list[tuple[int, int, int]]
"""File offset, address and length of each read."""


def require_direct(folder: Path) -> None:
    if not reads_directly(folder):
        pytest.skip("this file system does not take O_DIRECT")


def a_run(offset_bytes: int, count_bytes: int, position_bytes: int, opens: bool = True, closes: bool = True) -> ByteRun:
    return ByteRun(0, offset_bytes, count_bytes, position_bytes, None, opens, closes)


def read_run(path: Path, run: ByteRun, memory: np.ndarray, base_bytes: int, direct: bool = True) -> CheckpointFile:
    file = CheckpointFile(str(path), direct)
    try:
        for span in chunk_spans(run, base_bytes, guarded=direct):
            file.read(memory, span, BounceBuffer())
    finally:
        file.close()
    return file


@given(st.integers(0, 10**6), st.integers(1, 10**5), st.integers(0, 1), st.booleans(), st.booleans())
def test_spans_cover_their_run_once(small_chunks: None, offset: int, count: int, shift: int, opens: bool, closes: bool):
    position = 7 * BLOCK_BYTES + (offset + shift) % BLOCK_BYTES
    spans = chunk_spans(a_run(offset, count, position, opens, closes), 0, guarded=True)
    lead = spans[0].offset_bytes - offset
    assert lead == spans[0].start_bytes - position
    assert lead in (0, -(offset % BLOCK_BYTES))
    assert sum(span.count_bytes for span in spans) == count - lead
    for earlier, later in zip(spans, spans[1:], strict=False):
        assert later.offset_bytes - earlier.offset_bytes == earlier.count_bytes
        assert later.start_bytes - earlier.start_bytes == earlier.count_bytes
    assert all(span.count_bytes <= 1.5 * SMALL_CHUNK_BYTES + BLOCK_BYTES for span in spans)
    assert not lead or min(span.count_bytes for span in spans[:-1] or spans) == max(span.count_bytes for span in spans)
    for span in spans:
        if span.lands:
            assert span.start_bytes % BLOCK_BYTES == span.offset_bytes % BLOCK_BYTES == 0
            assert span.count_bytes % BLOCK_BYTES == 0 or (closes and span is spans[-1])


@pytest.mark.parametrize("offset", [0, 8, 4095, 4096, 5000])
def test_nothing_lands_in_slots_without_guards(offset: int):
    """Whatever the numbers say: the rest of the block belongs to a neighbour."""
    spans = chunk_spans(a_run(offset, 100, offset % BLOCK_BYTES), 0, guarded=False)
    assert spans == [ByteRange(offset % BLOCK_BYTES, offset, 100, lands=False)]


# Direct reads


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """What the kernel is asked for."""
    seen: Reads = []
    preadv = os.preadv

    def record(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        view = np.frombuffer(buffers[0], dtype=np.uint8)
        seen.append((offset, view.ctypes.data, view.size))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", record)
    return seen


@pytest.mark.parametrize("opens", [True, False])
@pytest.mark.parametrize("offset", [0, 1, 808, 4095])
def test_the_kernel_is_asked_for_whole_blocks_only(sources: list[Path], reads: Reads, offset: int, opens: bool):
    """Anything else is refused by some file systems and emulated slowly by others."""
    require_direct(sources[0].parent)
    memory = make_arena(16 * BLOCK_BYTES)
    run = a_run(offset, 20_000, 2 * BLOCK_BYTES + offset, opens)
    assert read_run(sources[0], run, memory, 4 * BLOCK_BYTES).direct
    assert reads
    assert all(value % BLOCK_BYTES == 0 for read in reads for value in read)
    start = 6 * BLOCK_BYTES + offset
    assert memory[start : start + 20_000].tobytes() == sources[0].read_bytes()[offset : offset + 20_000]


@pytest.mark.parametrize("opens", [True, False])
def test_only_a_run_that_opens_its_tensor_lands(sources: list[Path], reads: Reads, opens: bool):
    """Before any other run lie bytes that were read already: it goes through the bounce buffer."""
    require_direct(sources[0].parent)
    memory = make_arena(8 * BLOCK_BYTES)
    read_run(sources[0], a_run(100, 5000, BLOCK_BYTES + 100, opens), memory, 0)
    low = memory.ctypes.data
    landed = [low <= address < low + memory.size for _, address, _ in reads]
    assert landed == [opens]
    assert opens or (memory[: BLOCK_BYTES + 100] == CANARY).all()


def test_a_run_that_does_not_close_its_tensor_ends_to_the_byte(sources: list[Path]):
    """Up follows gate from another shard: it may be there already when gate arrives."""
    require_direct(sources[0].parent)
    memory = make_arena(8 * BLOCK_BYTES)
    read_run(sources[0], a_run(100, 5000, 100, closes=False), memory, 0)
    assert (memory[5100:] == CANARY).all()
    assert memory[100:5100].tobytes() == sources[0].read_bytes()[100:5100]


def test_the_last_block_of_a_file_may_be_short(sources: list[Path]):
    require_direct(sources[0].parent)
    size = SIZES_BYTES[0]
    memory = make_arena(8 * BLOCK_BYTES)
    position = (size - 6000) % BLOCK_BYTES
    read_run(sources[0], a_run(size - 6000, 6000, position), memory, 0)
    assert memory[position : position + 6000].tobytes() == sources[0].read_bytes()[-6000:]


@pytest.mark.parametrize("offset", [0, 808, 4095])
def test_a_read_longer_than_the_bounce_buffer(sources: list[Path], offset: int):
    """One row of a matrix to be converted may be longer than a chunk."""
    require_direct(sources[0].parent)
    memory = make_arena(16 * BLOCK_BYTES)
    file = CheckpointFile(str(sources[0]), direct=True)
    file.read(memory, ByteRange(100, offset, 30_000, lands=False), BounceBuffer())
    file.close()
    assert memory[100:30_100].tobytes() == sources[0].read_bytes()[offset : offset + 30_000]
    assert (memory[30_100:] == CANARY).all()


def refuse_direct(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    opened = os.open

    def refuse(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(code, os.strerror(code), path)
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)


def test_a_file_system_without_direct_reads_is_read_buffered(sources: list[Path], monkeypatch: pytest.MonkeyPatch):
    """tmpfs and some network file systems refuse O_DIRECT at open."""
    refuse_direct(monkeypatch, errno.EINVAL)
    memory = make_arena(16 * BLOCK_BYTES)
    file = read_run(sources[0], a_run(808, 20_000, 808), memory, BLOCK_BYTES)
    assert not file.direct
    assert memory[BLOCK_BYTES + 808 :][:20_000].tobytes() == sources[0].read_bytes()[808:20_808]
    assert (memory[BLOCK_BYTES + 20_808 :] == CANARY).all()


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOENT, errno.EMFILE])
def test_other_errors_at_open_are_not_taken_for_that(sources: list[Path], monkeypatch: pytest.MonkeyPatch, code: int):
    refuse_direct(monkeypatch, code)
    with pytest.raises(OSError, match=os.strerror(code)):
        CheckpointFile(str(sources[0]), direct=True)


@pytest.mark.parametrize("opens", [True, False])
def test_a_file_system_that_refuses_the_read_itself(sources: list[Path], monkeypatch: pytest.MonkeyPatch, opens: bool):
    """Some accept the flag and refuse the read, or ask for larger blocks."""
    require_direct(sources[0].parent)
    preadv = os.preadv

    def refuse(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", refuse)
    memory = make_arena(16 * BLOCK_BYTES)
    file = read_run(sources[0], a_run(808, 20_000, 808, opens), memory, 0)
    assert not file.direct
    assert memory[808:20_808].tobytes() == sources[0].read_bytes()[808:20_808]


@pytest.mark.parametrize("direct", [True, False])
def test_reads_that_stop_early_are_continued(sources: list[Path], monkeypatch: pytest.MonkeyPatch, direct: bool):
    """A signal or a busy disk may cut a read short, at a block in direct mode."""
    preadv = os.preadv
    most = BLOCK_BYTES if direct else 700
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:most]], at))
    memory = make_arena(16 * BLOCK_BYTES)
    read_run(sources[0], a_run(808, 20_000, 808), memory, 0, direct)
    assert memory[808:20_808].tobytes() == sources[0].read_bytes()[808:20_808]


# Broken files


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("left_bytes", [0, 4096, 5000, 20_000])
def test_a_file_that_was_cut_off_after_it_was_opened(tmp_path: Path, direct: bool, left_bytes: int):
    """Old bytes of the slot must not pass for the expert."""
    path = write_random(tmp_path, 40_000)[0]
    file = CheckpointFile(str(path), direct)
    os.truncate(path, left_bytes)
    memory = make_arena(16 * BLOCK_BYTES)
    with pytest.raises(OSError, match="ends .* bytes early") as caught:
        for span in chunk_spans(a_run(808, 39_000, 808), 0, guarded=True):
            file.read(memory, span, BounceBuffer())
    file.close()
    assert caught.value.filename == str(path)


def test_closing_twice_closes_once(sources: list[Path]):
    """The number may have been given to another file by then."""
    file = CheckpointFile(str(sources[0]), direct=False)
    file.close()
    other = os.open(sources[0], os.O_RDONLY)
    file.close()
    os.close(other)


# Memory


def test_direct_reads_leave_the_page_cache_alone(tmp_path: Path):
    """A budget that the page cache exceeds is no budget."""
    require_direct(tmp_path)
    path = write_random(tmp_path, 2**20)[0]
    drop_from_page_cache([path])
    before = cached_pages(path)
    read_run(path, a_run(808, 900_000, 808), make_arena(2**20), 0)
    assert cached_pages(path) == before == 0


@pytest.mark.parametrize("offset", [0, 808, 4095])
def test_buffered_reads_drop_their_pages(tmp_path: Path, offset: int):
    """Those at both ends too, and none by read-ahead."""
    path = write_random(tmp_path, 2**20)[0]
    drop_from_page_cache([path])
    if cached_pages(path):
        pytest.skip("this file system does not drop pages (tmpfs)")
    read_run(path, a_run(offset, 400_000, offset), make_arena(2**20), 0, direct=False)
    assert cached_pages(path) == 0


def test_buffered_reads_are_told_to_drop(sources: list[Path], monkeypatch: pytest.MonkeyPatch):
    """Where the page cache cannot be looked at."""
    told: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, at, count, advice: told.append((at, count, advice)))
    read_run(sources[0], a_run(5000, 100, 5000), make_arena(2**16), 0, direct=False)
    assert told == [(0, 0, os.POSIX_FADV_RANDOM), (4096, 4096, os.POSIX_FADV_DONTNEED)]


# Neighbours in a file


def neighbours(offset: int, first: int, second: int) -> list[ByteRange]:
    """Two tensors that follow each other in a file, in regions of a slot that lie the other way round."""
    positions = 8 * BLOCK_BYTES + offset % BLOCK_BYTES, (offset + first) % BLOCK_BYTES
    runs = [a_run(offset, first, positions[0]), a_run(offset + first, second, positions[1])]
    return [span for run in runs for span in chunk_spans(run, 0, guarded=True)]


@pytest.mark.parametrize("most", [2**20, 8192])
@pytest.mark.parametrize(("offset", "first"), [(808, 4000), (0, 4096), (100, 3996), (4095, 2)])
def test_neighbours_come_with_one_read(
    sources: list[Path], monkeypatch: pytest.MonkeyPatch, offset: int, first: int, most: int
):
    """And if that stops early, with one each."""
    require_direct(sources[0].parent)
    spans = neighbours(offset, first, 6000)
    assert len(join_spans(spans)) == 1
    asked: list[int] = []
    preadv = os.preadv

    def record(descriptor: int, buffers: list[memoryview], at: int) -> int:
        asked.append(len(buffers))
        return min(preadv(descriptor, buffers, at), most)

    monkeypatch.setattr(os, "preadv", record)
    memory = make_arena(16 * BLOCK_BYTES)
    file = CheckpointFile(str(sources[0]), direct=True)
    file.read_joined(memory, spans, BounceBuffer())
    file.close()
    assert (asked == [2]) == (most > 8192)
    data, second = sources[0].read_bytes(), (offset + first) % BLOCK_BYTES
    assert memory[8 * BLOCK_BYTES + offset % BLOCK_BYTES :][:first].tobytes() == data[offset : offset + first]
    assert memory[second : second + 6000].tobytes() == data[offset + first :][:6000]
