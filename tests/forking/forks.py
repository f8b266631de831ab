"""Stages of engines in tests are forks of a process that has imported torch and transformers already.

A start of compute takes seconds, nearly all of them imports, which are the same for every test. So the first start of a
session starts a server for stages with torch and one for those without (`server.py`), and every further start is a fork
of one of them: a child of this process with the arguments, environment and descriptors that a new process would have.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Sequence
from threading import Lock

from expertflow.configs.schema import Config
from expertflow.runtime.engine import children, stages

from .server import PID, Order

COMPUTE = "expertflow.workers.compute"
WITH_TORCH = tuple(f"expertflow.workers.{name}" for name in ("compute.shell", "surveyor.surveyor", "kernels.making"))
WITHOUT_TORCH = tuple(f"expertflow.workers.{stage}.shell" for stage in ("loader", "predictor", "scheduler"))
PR_SET_CHILD_SUBREAPER = 36
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
REAL_START = children.start_python
REAL_THREADS = stages.compute_threads


class Fork(subprocess.Popen[bytes]):
    """A child that another process has forked for us; waited for and signalled like one that we have started."""

    def __init__(self, pid: int, arguments: Sequence[str]) -> None:
        self.pid, self.args = pid, arguments
        self.returncode: int | None = None  # type: ignore[assignment]
        self.stdin = self.stdout = self.stderr = None
        self._child_created = True
        self._waitpid_lock = Lock()


class ForkServer:
    """A running server. `close` ends it; its forks live on."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._orders, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            words = [sys.executable, "-P", "-m", "expertflow.tests.forking.server", str(other.fileno()), *modules]
            environment = {**os.environ, **ONE_THREAD}
            environment.pop("OMP_NUM_THREADS", None)
            self._process = subprocess.Popen(words, env=environment, pass_fds=[other.fileno()], process_group=0)

    @property
    def pid(self) -> int:
        """Return the pid of the server."""
        return self._process.pid

    def fork(self, order: Order, descriptors: Sequence[int]) -> int:
        """Return the pid of a new child of this process."""
        become_subreaper(True)
        try:
            socket.send_fds(self._orders, [pickle.dumps(order)], descriptors)
            (pid,) = PID.unpack(self._orders.recv(PID.size))
        finally:
            become_subreaper(False)
        return pid

    def close(self) -> None:
        """End the server."""
        self._orders.close()
        self._process.wait()


class StageForks:
    """The servers of this process, each started when it is first needed."""

    def __init__(self) -> None:
        self.enabled = True
        self._variables = variables()
        self._servers: dict[tuple[str, ...], ForkServer] = {}
        self._lock = Lock()

    @property
    def pids(self) -> set[int]:
        """Return the pids of the servers: no test has left them behind."""
        return {server.pid for server in self._servers.values()}

    def start(
        self, arguments: Sequence[str], environment: dict[str, str], output: int, fds: Sequence[int]
    ) -> subprocess.Popen[bytes]:
        """Do what `children.start_python` does.

        A process that is no worker of an engine is started afresh, and each one while a test has changed variables of
        the environment: libraries may read those when they are imported.
        """
        module = arguments[2] if arguments[:2] == ("-P", "-m") else ""
        changed = variables() != self._variables
        if not self.enabled or changed or not module.startswith("expertflow.workers."):
            return REAL_START(arguments, environment, output, fds)
        with self._lock, open(os.devnull, "rb") as nothing:
            order = Order(module, list(arguments[3:]), environment, os.getcwd(), [0, 1, 2, *fds])
            server = self._server(WITH_TORCH if module == COMPUTE else WITHOUT_TORCH)
            return Fork(server.fork(order, [nothing.fileno(), output, output, *fds]), arguments)

    def compute_threads(self, config: Config) -> int:
        """Return what `stages.compute_threads` returns where stages are started afresh; else one, if none is given."""
        return config.compute_threads or (1 if self.enabled else REAL_THREADS(config))

    def close(self) -> None:
        """End the servers."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def _server(self, modules: tuple[str, ...]) -> ForkServer:
        if modules not in self._servers:
            self._servers[modules] = ForkServer(modules)
        return self._servers[modules]


def variables() -> dict[str, str]:
    """Return the environment without what pytest changes at each test."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


def become_subreaper(wanted: bool) -> None:
    """Let orphans among our descendants become our children, or no longer."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
