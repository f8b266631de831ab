"""Processes of Ray on this machine, found by the command lines that Ray gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import psutil

REPLICA = "ray::ServeReplica:expertflow:"
"""Beginning of a replica's command line, before the name of its deployment."""


class RunningProcess(NamedTuple):
    """A process of this machine."""

    started_s: float
    pid: int
    parent: int
    words: str
    """Its command line."""


def replica_processes(deployment: str = "Engines") -> list[int]:
    """Return the replicas of a deployment, the oldest first, without those that are about to end with their node."""
    found = [each for each in _processes() if each.words.startswith(f"{REPLICA}{deployment}") and each.parent > 1]
    return [each.pid for each in sorted(found)]


def ray_processes() -> dict[str, list[int]]:
    """Return kind -> the processes of Ray on this machine, without engines."""
    kinds: dict[str, list[int]] = {}
    for each in _processes():
        if kind := _kind_of(each.words):
            kinds.setdefault(kind, []).append(each.pid)
    return kinds


def _processes() -> Iterator[RunningProcess]:
    for process in psutil.process_iter():
        try:
            with process.oneshot():
                words = " ".join(process.cmdline())
                yield RunningProcess(process.create_time(), process.pid, process.ppid(), words)
        except psutil.Error:  # it has just ended
            continue


def _kind_of(words: str) -> str:
    if words.startswith("ray::"):
        return words.split()[0].partition("::")[2].partition(".")[0][:40]
    for part in ("gcs_server", "raylet", "dashboard", "log_monitor", "monitor.py"):
        if "/ray/" in words and part in words:
            return part
    return ""
