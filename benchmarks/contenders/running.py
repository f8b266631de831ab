"""Run a contender in a process of its own, under a memory limit that the kernel enforces."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from ..limits import MemoryGroup, PeakPss, drop_from_page_cache, memory_group
from .base import Contender, Task, TaskResult

GROUP = "expertflow-bench"


@dataclass
class Run:
    """Hold what came of it. Without an answer `failure` says why."""

    answer: TaskResult | None = None
    failure: str = ""
    pss_peak_bytes: int = 0
    group_peak_bytes: int | None = None


def run(contender: Contender, task: Task, timeout_s: float) -> Run:
    """Run one process, its files out of the page cache before.

    Raises NoLimit where `task` has one and none can be made, and Missing if what it needs cannot be prepared.
    """
    model = Path(task.model)
    contender.prepare(model)
    task = msgspec.structs.replace(
        task,
        threads=list(contender.threads),
        options=contender.options(task.limit_bytes),
        trial_steps=contender.trial_steps,
    )
    drop_from_page_cache(contender.files(model))
    with ExitStack() as stack:
        group = stack.enter_context(memory_group(task.limit_bytes, GROUP)) if task.limit_bytes else None
        command = group.command(contender.command(model)) if group else contender.command(model)
        return _run(command, _environment(contender), msgspec.json.encode(task), group, timeout_s)


def _environment(contender: Contender) -> dict[str, str]:
    """Return ours without a number of threads, which is for the contender to choose, and with what it asks for."""
    ours = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return ours | contender.environment()


def _run(
    command: Sequence[str], environment: Mapping[str, str], task: bytes, group: MemoryGroup | None, timeout_s: float
) -> Run:
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment) as process:
        pids = _pids(process, group)
        peak = PeakPss(pids)
        try:
            said, complaints = process.communicate(task, timeout_s)
            done = Run(failure=_failure(process.returncode, complaints, group))
        except subprocess.TimeoutExpired:
            said, done = b"", Run(failure=f"not done after {timeout_s:.0f} s")
        finally:
            _kill(pids())
            peak.stop()
        done.pss_peak_bytes = peak.peak_bytes
    done.group_peak_bytes = group.peak_bytes if group else None
    if not done.failure:
        done.answer = msgspec.json.decode(said.splitlines()[-1], type=TaskResult)
    return done


def _pids(process: subprocess.Popen[bytes], group: MemoryGroup | None) -> Callable[[], Iterable[int]]:
    if group:
        return lambda: group.pids
    return lambda: _tree(process.pid)


def _tree(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _failure(status: int, complaints: bytes, group: MemoryGroup | None) -> str:
    """Empty if all went well."""
    if status == 0:
        return ""
    if group and group.kills:
        return "killed by the kernel: out of memory"
    lines = complaints.decode(errors="replace").strip().splitlines()
    telling = next((line for line in reversed(lines) if "Error" in line), "".join(lines[-1:]))
    return f"exit status {status}: {telling.strip()}"


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            psutil.Process(pid).kill()
        except psutil.NoSuchProcess:
            continue
