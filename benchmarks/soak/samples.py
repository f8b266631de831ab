"""Memory, descriptors and threads of every process of an engine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import psutil

MIB = 1 << 20
_MODULE = re.compile(r"expertflow\.(?:workers|runtime)\.(\w+)")
SUPERVISOR = "supervisor"


class Sample(NamedTuple):
    """One process at one moment."""

    private_mib: float
    """Memory that no other process shares."""
    pss_mib: float
    """Proportional set size: it also changes when other programs map the same libraries."""
    descriptors: int
    threads: int
    cpu_s: float
    """Processor time since its start."""


class Moment(NamedTuple):
    """All processes after so many requests, and the latencies of the requests since the moment before."""

    requests: int
    seconds: float
    processes: dict[str, Sample]
    median_ms: float
    p95_ms: float
    alone_ms: float
    """Median of requests that were sent one after the other."""


def sample_processes(supervisor: int) -> dict[str, Sample]:
    """Return a sample of each process of an engine by name: the supervisor and its children."""
    parent = psutil.Process(supervisor)
    return {name_of(each.cmdline()): _sample(each) for each in [parent, *parent.children()]}


def name_of(command: Sequence[str]) -> str:
    """Return the stage, `http`, or `supervisor` of a command line."""
    found = next((match for word in command if (match := _MODULE.fullmatch(word))), None)
    return found[1] if found else SUPERVISOR


def _sample(process: psutil.Process) -> Sample:
    memory = process.memory_full_info()
    times = process.cpu_times()
    cpu_s = times.user + times.system
    return Sample(memory.uss / MIB, memory.pss / MIB, process.num_fds(), process.num_threads(), cpu_s)
