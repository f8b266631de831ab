"""Stages and commands in tests are forks of a process that has imported torch and transformers already.

A start of compute takes seconds, nearly all of them imports, which are the same for every test. So the first start of a
session starts a server for processes with torch and one for those without (`server.py`), and every further start is a
fork of one of them: a child of this process with the arguments, environment and descriptors that a new process would
have. A command has a server of its own for what it starts, a fork of the one that it came from.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock
from unittest.mock import patch

from expertflow.configs.schema import Config
from expertflow.runtime.engine import children, stages

from .commands import forking_popen
from .server import PID, Order

OTHERS = ("scheduler", "predictor", "loader")
WITH_TORCH = (
    *(f"expertflow.workers.{name}" for name in ("compute.shell", "kernels.making")),
    *(f"expertflow.workers.surveyor.{name}" for name in ("surveyor", "entry", "diagnosis")),
    *(f"expertflow.runtime.{name}" for name in ("verify.checks", "command_line.program")),
    *(f"expertflow.runtime.commands.{name}" for name in ("serve", "generate", "running.top")),
    *("expertflow.tests.forking.forks", "transformers.models.qwen3_moe.modeling_qwen3_moe"),
)
WITHOUT_TORCH = tuple(f"expertflow.workers.{stage}.shell" for stage in OTHERS)
READ_LATE = frozenset({"XDG_CACHE_HOME", "NOTIFY_SOCKET", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"})
"""Variables that our own code reads when it needs them, or that say only how much is told."""
PR_SET_CHILD_SUBREAPER = 36
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
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

    def __init__(self, orders: socket.socket, pid: int, wait: Callable[[], object] = lambda: None) -> None:
        """Take the socket for its orders, and what waits for its end."""
        self.pid = pid
        self._orders, self._wait = orders, wait

    @classmethod
    def start(cls, modules: Sequence[str]) -> ForkServer:
        """Start a server that imports modules."""
        ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            words = [sys.executable, "-P", "-m", "expertflow.tests.forking.server", str(other.fileno()), *modules]
            environment = {**os.environ, **ONE_THREAD, **QUIET}
            environment.pop("OMP_NUM_THREADS", None)
            process = subprocess.Popen(words, env=environment, pass_fds=[other.fileno()], process_group=0)
        return cls(ours, process.pid, process.wait)

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
        self._wait()


class StageForks:
    """The servers of this process, each started when it is first needed, or the one that is given."""

    def __init__(self, server: ForkServer | None = None) -> None:
        self.enabled = True
        self._variables = variables(os.environ)
        self._given = server
        self._servers: dict[tuple[str, ...], ForkServer] = {}
        self._lock = Lock()

    @property
    def pids(self) -> set[int]:
        """Return the pids of the servers: no test has left them behind."""
        return {server.pid for server in self._servers.values()}

    def replace_starts(self) -> Callable[[], None]:
        """Let this process start its stages and commands as forks; return what undoes that."""
        with ExitStack() as patches:
            patches.enter_context(patch.object(children, "start_python", self.start))
            patches.enter_context(patch.object(stages, "compute_threads", self.compute_threads))
            patches.enter_context(patch.object(subprocess, "Popen", forking_popen(self)))
            return patches.pop_all().close

    @contextmanager
    def afresh(self) -> Iterator[None]:
        """Start processes afresh meanwhile: in a restart that takes as long as a user's, or where imports count."""
        self.enabled = False
        yield
        self.enabled = True

    def start(
        self, arguments: Sequence[str], environment: dict[str, str], output: int, fds: Sequence[int]
    ) -> subprocess.Popen[bytes]:
        """Do what `children.start_python` does.

        A process that is no worker of an engine is started afresh, and each one while a test has changed variables of
        the environment: libraries may read those when they are imported.
        """
        module = arguments[2] if arguments[:2] == ("-P", "-m") else ""
        if not self.may_fork() or not module.startswith("expertflow.workers."):
            return REAL_START(arguments, environment, output, fds)
        order = Order(module, list(arguments[3:]), dict(environment), os.getcwd(), [0, 1, 2, *fds])
        with open(os.devnull, "rb") as nothing:
            return Fork(self.fork(order, [nothing.fileno(), output, output, *fds]), arguments)

    def may_fork(self) -> bool:
        """Return whether a new process would read what the servers have read."""
        return self.enabled and self.knows(os.environ)

    def knows(self, environment: Mapping[str, str]) -> bool:
        """Return whether the servers have read the same variables."""
        return variables(environment) == self._variables

    def fork(self, order: Order, descriptors: Sequence[int]) -> int:
        """Return the pid of a new child of this process."""
        with self._lock:
            without = order.module in {f"expertflow.workers.{stage}" for stage in OTHERS}
            return self._server(WITHOUT_TORCH if without else WITH_TORCH).fork(order, descriptors)

    def compute_threads(self, config: Config) -> int:
        """Return what `stages.compute_threads` returns where stages are started afresh; else one, if none is given."""
        return config.compute_threads or (1 if self.enabled else REAL_THREADS(config))

    def close(self) -> None:
        """End the servers."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def _server(self, modules: tuple[str, ...]) -> ForkServer:
        if self._given:
            return self._given
        if modules not in self._servers:
            self._servers[modules] = ForkServer.start(modules)
        return self._servers[modules]


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what pytest changes at each test and what is read late."""
    return {
        name: value for name, value in environment.items() if not name.startswith("PYTEST_") and name not in READ_LATE
    }


def become_subreaper(wanted: bool) -> None:
    """Let orphans among our descendants become our children, or no longer."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
