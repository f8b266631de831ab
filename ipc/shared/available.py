"""Available memory of the machine and of the control groups of this process."""

from __future__ import annotations

from pathlib import Path


def available_bytes() -> int:
    """Return the bytes free without swapping or being killed: the least of the machine and its control groups."""
    return min([_machine_bytes(), *_group_bytes()])


def _machine_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")


def _group_bytes() -> list[int]:
    """Return the free bytes of every memory control group from this process's own to the root, version 1 or 2."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += _free_upwards(Path("/sys/fs/cgroup"), path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            found += _free_upwards(root, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return found


def _free_upwards(root: Path, path: str, limit: str, usage: str, reclaimable: str) -> list[int]:
    folder = root / path.strip("/")
    free = []
    for group in (folder, *folder.parents):
        if not group.is_relative_to(root):
            break
        try:
            free.append(_free_bytes(group, limit, usage, reclaimable))
        except (OSError, ValueError):  # no limit ("max"), or outside the groups this process may see
            continue
    return free


def _free_bytes(group: Path, limit: str, usage: str, reclaimable: str) -> int:
    """Return limit minus usage; cached files that are not in use do not count as usage."""
    used = int((group / usage).read_text())
    for line in (group / "memory.stat").read_text().splitlines():
        name, _, count = line.partition(" ")
        if name == reclaimable:
            used -= int(count)
    return int((group / limit).read_text()) - used
