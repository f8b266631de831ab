"""Facts of a machine that an engine depends on, gathered in milliseconds, without torch."""

from __future__ import annotations

import os
import platform
import resource
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import msgspec

from ...configs.schema import Config
from ...errors import UsageError
from ...ipc.shared.available import SYSTEM, allowed_cores, available_bytes, machine_bytes, memory_groups
from ...ipc.shared.rundir import RunDir
from ..engine.preflight import cuda_version
from ..engine.stages import compute_threads
from .versions import PACKAGES

UNLIMITED = -1
PROBE_BYTES = 1 << 20
"""Shared memory that is allocated, to see whether it can be."""
SHARED_FOLDER = Path("/dev/shm")


class MachineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """State of the machine, as this process sees it. Sizes are bytes; `UNLIMITED` where nothing limits them."""

    available_bytes: int
    machine_bytes: int
    group: str
    """Folder of the memory control group that limits most; empty: none leaves less than the machine has."""
    group_bytes: int
    """Limit of that group."""
    shared_error: str
    """Why anonymous shared memory cannot be made; empty: it can."""
    shm_bytes: int
    """Size of /dev/shm; 0: there is none."""
    run_folder: str
    """Folder for the engines' run directories."""
    run_free_bytes: int
    run_error: str
    """Why no run directory can be made there; empty: it can."""
    locked_bytes: int
    """Memory that a process may lock."""
    open_files: int
    cores: int
    """Cores that this process may run on."""
    allowed_cores: float
    """Cores that the control groups give time for; `UNLIMITED` without a limit."""
    compute_threads: int
    torch_cuda: str
    """CUDA version that torch is built for; empty: none."""
    python: str
    versions: dict[str, str]
    """Package -> its installed version; empty: it is missing."""


def gather_facts(config: Config, system: Path = SYSTEM) -> MachineFacts:
    """Return the facts of this machine for an engine of `config`; `system` is the root of /proc and /sys/fs/cgroup."""
    machine = machine_bytes("MemAvailable", system)
    tightest = min(memory_groups(system), key=lambda group: group.free_bytes, default=None)
    limits = tightest is not None and tightest.free_bytes < machine
    folder, free_bytes, error = _run_folder()
    cores = allowed_cores(system)
    return MachineFacts(
        available_bytes=available_bytes(system),
        machine_bytes=machine_bytes("MemTotal", system),
        group=str(tightest.folder) if tightest and limits else "",
        group_bytes=tightest.limit_bytes if tightest and limits else 0,
        shared_error=_shared_error(),
        shm_bytes=_size_of(SHARED_FOLDER),
        run_folder=folder,
        run_free_bytes=free_bytes,
        run_error=error,
        locked_bytes=_limit(resource.RLIMIT_MEMLOCK),
        open_files=_limit(resource.RLIMIT_NOFILE),
        cores=len(os.sched_getaffinity(0)),
        allowed_cores=UNLIMITED if cores == float("inf") else cores,
        compute_threads=compute_threads(config),
        torch_cuda=cuda_version(),
        python=platform.python_version(),
        versions={name: _version(name) for name in PACKAGES},
    )


def _limit(number: int) -> int:
    soft, _ = resource.getrlimit(number)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def _shared_error() -> str:
    """Return why no shared memory can be made as an engine makes it; empty if it can."""
    try:
        descriptor = os.memfd_create("expertflow-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        return f"memfd_create: {error.strerror}"
    try:
        os.posix_fallocate(descriptor, 0, PROBE_BYTES)
    except OSError as error:
        return f"allocating {PROBE_BYTES} bytes: {error.strerror}"
    finally:
        os.close(descriptor)
    return ""


def _size_of(folder: Path) -> int:
    with suppress(OSError):
        status = os.statvfs(folder)
        return status.f_blocks * status.f_frsize
    return 0


def _run_folder() -> tuple[str, int, str]:
    """Return the folder of run directories, its free bytes, and why none can be made there; empty if it can."""
    try:
        run_dir = RunDir.create()
    except UsageError as error:
        return error.where, 0, error.what
    try:
        status = os.statvfs(run_dir.path)
        return str(run_dir.path.parent), status.f_bavail * status.f_frsize, ""
    finally:
        run_dir.close()


def _version(package: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return ""
