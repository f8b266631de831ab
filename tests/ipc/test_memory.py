"""Shared memory that cannot leak, shrink or be promised twice."""

from __future__ import annotations

import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from expertflow.errors import BudgetError
from expertflow.ipc.shared import memory
from expertflow.ipc.shared.available import allowed_cores, available_bytes, memory_groups
from expertflow.ipc.shared.memory import Arena

SIZE = 3 * mmap.PAGESIZE


def test_another_process_sees_what_is_written_and_writes_what_is_seen():
    """Weights travel only this way; a private mapping would look right in every single-process test."""
    arena = Arena.create("slots", SIZE)
    arena.array[:4] = [1, 2, 3, 4]
    code = (
        "import sys; from expertflow.ipc.shared.memory import Arena;"
        "a = Arena.attach(int(sys.argv[1]), int(sys.argv[2]));"
        "assert a.array[:4].tolist() == [1, 2, 3, 4]; a.array[-1] = 9"
    )
    subprocess.run([sys.executable, "-c", code, str(arena.fd), str(SIZE)], pass_fds=[arena.fd], check=True)
    assert arena.array[-1] == 9
    assert arena.array.shape == (SIZE,)
    assert arena.array.dtype == np.uint8
    arena.close()


def test_its_size_is_sealed_and_its_pages_are_there():
    """A wrong truncate would be a SIGBUS in another process; a page not there is memory that may be missing later."""
    arena = Arena.create("slots", SIZE)
    for wrong in (0, SIZE * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, wrong)
    assert os.fstat(arena.fd).st_blocks * 512 == SIZE
    arena.close()


def test_its_pages_are_mapped_with_it():
    """One fault a page costs the first direct read into it ten times its own CPU time."""
    arena = Arena.create("here", 16 * 2**20)
    array = arena.array
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array[:: mmap.PAGESIZE] = 1
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    arena.close()
    assert faults < array.size // mmap.PAGESIZE // 4


def test_it_is_not_inherited_unless_passed():
    """Any program the user starts would hold the memory open."""
    arena = Arena.create("slots", SIZE)
    code = "import os, sys; sys.exit(os.path.exists('/proc/self/fd/' + sys.argv[1]))"
    assert subprocess.run([sys.executable, "-c", code, str(arena.fd)], close_fds=False, check=False).returncode == 0
    arena.close()


def test_closing_under_a_view_leaves_the_view_alive():
    """Unmapping under a tensor is a SIGSEGV."""
    arena = Arena.create("slots", SIZE)
    view = arena.array[5:]
    view[0] = 7
    arena.close()
    assert view[0] == 7
    arena.close()


def test_more_than_there_is_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: SIZE - 1)
    with pytest.raises(BudgetError, match="'slots': needs 12.3 kB of shared memory, but only 12.3 kB"):
        Arena.create("slots", SIZE)


def test_when_the_pages_cannot_be_had_it_is_refused_and_nothing_stays(monkeypatch: pytest.MonkeyPatch):
    """Another program may have taken them after the check; the leak fixture looks for the descriptor."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BudgetError, match="only 0 B is available"):
        Arena.create("slots", SIZE)


def test_progress_is_told_to_the_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_CHUNK_BYTES", mmap.PAGESIZE)
    told: list[tuple[int, int]] = []
    Arena.create("slots", SIZE, lambda done, total: told.append((done, total))).close()
    assert told == [(mmap.PAGESIZE * count, SIZE) for count in (1, 2, 3)]


def test_what_is_available_is_not_more_than_the_machine_has():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_bytes() <= total


def test_the_room_of_a_control_group_counts_cached_files_as_free(tmp_path: Path):
    """Otherwise a container that has read its checkpoint once would have no memory left for it."""
    own, group = tmp_path / "proc" / "self", tmp_path / "sys" / "fs" / "cgroup" / "a" / "b"
    own.mkdir(parents=True)
    group.mkdir(parents=True)
    (own / "cgroup").write_text("0::/a/b\n")
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 8 kB\n")
    (group / "memory.max").write_text("1000\n")
    (group / "memory.current").write_text("900\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 300\n")
    (group.parent / "memory.max").write_text("max\n")
    assert memory_groups(tmp_path) == [(group, 1000, 400)] and available_bytes(tmp_path) == 400


@pytest.mark.parametrize(
    ("line", "files", "cores"),
    [
        ("0::/a", {"a/cpu.max": "150000 100000"}, 1.5),
        ("0::/a", {"a/cpu.max": "max 100000", "cpu.max": "50000 100000"}, 0.5),
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, float("inf")),
        ("4:cpu,cpuacct:/a", {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
    ],
)
def test_the_cores_of_control_groups_of_both_versions(tmp_path: Path, line: str, files: dict[str, str], cores: float):
    for name, text in {"proc/self/cgroup": line}.items() | {f"sys/fs/cgroup/{n}": t for n, t in files.items()}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert allowed_cores(tmp_path) == cores
