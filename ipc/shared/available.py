"""Available memory of the machine and of the control groups of this process, and what these groups allow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SYSTEM = Path("/")
"""Root of /proc and /sys/fs/cgroup; another one in tests."""
MEMORY_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""Version of control groups -> the files of limit and usage, and the reclaimable part's line in memory.stat."""


class MemoryGroup(NamedTuple):
    """A memory control group of this process."""

    folder: Path
    limit_bytes: int
    free_bytes: int


def available_bytes(system: Path = SYSTEM) -> int:
    """Return the bytes free without swapping or being killed: the least of the machine and its control groups."""
    return min([machine_bytes("MemAvailable", system), *(group.free_bytes for group in memory_groups(system))])


def machine_bytes(name: str, system: Path = SYSTEM) -> int:
    """Return a line of /proc/meminfo, such as MemTotal, in bytes."""
    for line in (system / "proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/meminfo has no {name}")


def memory_groups(system: Path = SYSTEM) -> list[MemoryGroup]:
    """Return every memory control group with a limit from this process's own to the root, version 1 or 2.

    Version 1 states a limit of the whole address space where there is none.
    """
    found = []
    for folder, version in group_folders("memory", system):
        limit, usage, reclaimable = MEMORY_FILES[version]
        try:
            free_bytes = _free_bytes(folder, limit, usage, reclaimable)
            found.append(MemoryGroup(folder, int((folder / limit).read_text()), free_bytes))
        except (OSError, ValueError):  # no limit ("max"), or outside the groups this process may see
            continue
    return found


def allowed_cores(system: Path = SYSTEM) -> float:
    """Return for how many cores the control groups of this process give time; infinite without a limit."""
    return min((_quota(folder, version) for folder, version in group_folders("cpu", system)), default=float("inf"))


def group_folders(controller: str, system: Path = SYSTEM) -> Iterator[tuple[Path, int]]:
    """Yield the folder of every control group of this process, from its own to the root, with the version (1 or 2)."""
    root = system / "sys/fs/cgroup"
    for line in (system / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from ((folder, 2) for folder in _upwards(root, path))
        elif controller in controllers.split(","):
            yield from ((folder, 1) for folder in _upwards(root / controller, path))


def _upwards(root: Path, path: str) -> list[Path]:
    folder = root / path.strip("/")
    return [group for group in (folder, *folder.parents) if group.is_relative_to(root)]


def _quota(folder: Path, version: int) -> float:
    """Return the cores that a group gives time for; infinite without a limit."""
    try:
        if version == 2:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else float("inf")
    except (OSError, ValueError):  # no limit ("max"), or outside the groups this process may see
        return float("inf")


def _free_bytes(group: Path, limit: str, usage: str, reclaimable: str) -> int:
    """Return limit minus usage; cached files that are not in use do not count as usage."""
    used = int((group / usage).read_text())
    for line in (group / "memory.stat").read_text().splitlines():
        name, _, count = line.partition(" ")
        if name == reclaimable:
            used -= int(count)
    return int((group / limit).read_text()) - used
