"""Enforce a memory limit by a control group of Linux (version 1 or 2, page cache counted), drop files from the page
cache, and watch the memory of processes.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
REMOVAL_S = 10.0


class NoLimit(Exception):
    """No control group can be made here; the message says why."""


@dataclass(frozen=True)
class Names:
    """Name the files of a version."""

    limit: str
    swap: str
    peak: str
    kills: str


V1 = Names("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control")
V2 = Names("memory.max", "memory.swap.max", "memory.peak", "memory.events")


@dataclass(frozen=True)
class MemoryGroup:
    """Hold a control group; processes are started into it, so that their children belong to it too."""

    folder: Path
    names: Names

    def command(self, command: Sequence[str]) -> list[str]:
        """Return `command` so that it runs inside the group."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"), *command]

    @property
    def peak_bytes(self) -> int | None:
        """Return the most that was charged, page cache included; None where the kernel does not say."""
        try:
            return int((self.folder / self.names.peak).read_text())
        except (OSError, ValueError):
            return None

    @property
    def kills(self) -> int:
        """Count the processes that the kernel killed for lack of memory."""
        for line in (self.folder / self.names.kills).read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
        return 0

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in (self.folder / "cgroup.procs").read_text().split()]


@contextlib.contextmanager
def memory_group(limit_bytes: int, name: str, root: Path = ROOT, own: Path = OWN) -> Iterator[MemoryGroup]:
    """Make a group with this limit and no swap, and remove it at the end. Raises NoLimit."""
    parents = _parents(root, own.read_text())
    reasons = []
    for parent, names in parents:
        folder = parent / f"{name}-{os.getpid()}"
        try:
            folder.mkdir()
            (folder / names.limit).write_text(str(limit_bytes))
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
            with contextlib.suppress(OSError):
                folder.rmdir()
            continue
        try:
            _forbid_swap(folder, names, limit_bytes)
            yield MemoryGroup(folder, names)
        finally:
            _remove(folder)
        return
    raise NoLimit("; ".join(reasons) or "no memory controller is mounted")


def _parents(root: Path, own: str) -> list[tuple[Path, Names]]:
    """List where a group may be made: below our own (version 1), or beside it or further up (version 2).

    A group of version 2 holds either processes or groups.
    """
    found = []
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            mount = root / "memory"
            found += [(group, V1) for group in _upwards(mount, path)]
        elif not controllers:
            found += [(group, V2) for group in _upwards(root, path) if _hands_memory_down(group)]
    return found


def _upwards(root: Path, path: str) -> list[Path]:
    folder = root / path.strip("/")
    return [group for group in (folder, *folder.parents) if group.is_relative_to(root) and group.is_dir()]


def _hands_memory_down(group: Path) -> bool:
    try:
        return "memory" in (group / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False


def _forbid_swap(folder: Path, names: Names, limit_bytes: int) -> None:
    """Forbid swap where it is counted at all."""
    if (folder / names.swap).exists():
        (folder / names.swap).write_text(str(limit_bytes if names is V1 else 0))


def _remove(folder: Path) -> None:
    """Remove the group once its last process is gone."""
    deadline = time.monotonic() + REMOVAL_S
    while True:
        try:
            return folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def drop_from_page_cache(files: Iterable[Path]) -> None:
    """Write back what is dirty, then drop every page of these files that nobody maps."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


WATCH_INTERVAL_S = 0.5


class PeakPss:
    """Watch the largest sum of the processes' proportional set sizes (shared pages count once), twice a second."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self.peak_bytes = 0
        self._pids, self._stopped = pids, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(WATCH_INTERVAL_S):
            self.peak_bytes = max(self.peak_bytes, sum(pss_bytes(pid) for pid in self._pids()))


def pss_bytes(pid: int) -> int:
    """Return the proportional set size in bytes, 0 for a process that has gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)
