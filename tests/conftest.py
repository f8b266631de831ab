"""What every test has: a run directory of its own base, and a look afterwards at what it left behind (I6)."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Set
from pathlib import Path

import psutil
import pytest
import zmq
from expertflow.configs.user_cache import cache_folder
from expertflow.ipc.shared.rundir import RunDir
from expertflow.ipc.transport.sockets import Context
from expertflow.runtime.plan.past_runs import FILE
from expertflow.tests.forking.forks import StageForks
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent
GRACE_SECONDS = 20.0
"""A busy machine takes its time to end a process; only a failing test waits that long."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-scripts", action="store_true", help="write what the cores answer into tests/data/scripts"
    )


def pytest_configure() -> None:
    """How long an example takes says nothing about the code: a busy machine must fail no property."""
    settings.register_profile("expertflow", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("expertflow")
    if is_worker():
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long modules first where several processes share the tests: the last module then ends soon."""
    if is_worker():
        items.sort(key=lambda item: not (item.path.is_relative_to(TESTS / "system") or item.path.parent == TESTS))


def is_worker() -> bool:
    """Return whether this process is one of several that share the tests (pytest-xdist)."""
    return "PYTEST_XDIST_WORKER" in os.environ


@pytest.fixture(scope="session", autouse=True)
def runtime_base() -> Iterator[Path]:
    """Run directories of this session go here: short, and no business of other sessions."""
    base = Path(tempfile.mkdtemp(prefix="ef", dir="/tmp"))
    os.environ["XDG_RUNTIME_DIR"] = str(base)
    yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def past_runs_stay() -> Iterator[None]:
    """Runs of tests, on a busy machine, must not correct the forecasts of whoever runs them."""
    file = cache_folder() / FILE
    before = file.read_bytes() if file.exists() else None
    yield
    if before is not None:
        file.write_bytes(before)
    else:
        file.unlink(missing_ok=True)


@pytest.fixture(scope="session", autouse=True)
def stage_forks(runtime_base: Path) -> Iterator[StageForks]:
    """Stages and commands that tests start are forks of servers that have imported torch and transformers once.

    Compute has one thread where a configuration names no number: with more, tiny matrices wait for each other.
    """
    forks = StageForks()
    undo = forks.replace_starts()
    yield forks
    undo()
    forks.close()


@pytest.fixture(scope="module")
def new_processes(stage_forks: StageForks) -> Iterator[None]:
    """Stages and commands of this module are started afresh, as users' are: where imports, memory or times count."""
    with stage_forks.afresh():
        yield


@pytest.fixture(autouse=True)
def nothing_left_behind(runtime_base: Path, stage_forks: StageForks) -> Iterator[None]:
    """Fails a test that leaves a process, a run directory, a descriptor of memory or of a process, or /dev/shm."""
    before = _belongings(runtime_base, stage_forks.pids)
    yield
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := _belongings(runtime_base, stage_forks.pids) - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, f"left behind: {dict(left)}"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny matrices on several threads wait for each other, for minutes when the machine is busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each of `FAMILIES` in a folder of its name, only to be read."""
    from expertflow.tests.models.families import FAMILIES, save_tiny

    root = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        save_tiny(family, root / family)
    return root


@pytest.fixture
def run_dir(runtime_base: Path) -> Iterator[RunDir]:
    directory = RunDir.create(runtime_base)
    yield directory
    directory.close()


@pytest.fixture
def context() -> Iterator[Context]:
    made: Context = zmq.Context()
    yield made
    made.destroy(linger=0)


def _belongings(base: Path, servers: Set[int]) -> Counter[str]:
    """Counts, since an engine that outlives the test may restart a stage: then as many are there as before."""
    shared = [f"/dev/shm/{name}" for name in os.listdir("/dev/shm") if str(os.getpid()) in name]
    return Counter([*_children(servers), *_descriptors(), *(str(path) for path in base.iterdir()), *shared])


def _children(servers: Set[int]) -> list[str]:
    found = []
    for child in psutil.Process().children():
        if child.pid in servers:
            continue
        try:
            command = " ".join(child.cmdline()[1:4])
        except psutil.Error:
            command = "zombie"
        if "resource_tracker" not in command:
            found.append(f"process {command}")
    return found


def _descriptors() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith(("/memfd:", "anon_inode:[pidfd]")):
            found.append(target)
    return found
