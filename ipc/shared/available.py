"""How much memory may still be taken: the machine's, and that of the control groups this process is in."""

from __future__ import annotations

from pathlib import Path


def available_bytes() -> int:
    """Memory that can be taken now without swapping or being killed: the least of machine and control groups."""
    return min([_machine_bytes(), *_group_bytes()])


def _machine_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")


def _group_bytes() -> list[int]:
    """Room in every memory control group from this process's own to the root, version 1 or 2."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += _rooms(Path("/sys/fs/cgroup"), path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            found += _rooms(root, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return found


def _rooms(root: Path, path: str, limit: str, usage: str, reclaimable: str) -> list[int]:
    folder = root / path.strip("/")
    rooms = []
    for group in (folder, *folder.parents):
        if not group.is_relative_to(root):
            break
        try:
            rooms.append(_room(group, limit, usage, reclaimable))
        except (OSError, ValueError):  # no limit ("max"), or outside the groups this process may see
            continue
    return rooms


def _room(group: Path, limit: str, usage: str, reclaimable: str) -> int:
    """Limit minus what is used; files cached but not in use give way."""
    used = int((group / usage).read_text())
    for line in (group / "memory.stat").read_text().splitlines():
        name, _, count = line.partition(" ")
        if name == reclaimable:
            used -= int(count)
    return int((group / limit).read_text()) - used
