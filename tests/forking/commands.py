"""A `subprocess.Popen` whose child is a fork where the command line is one of ours: commands, surveys, checks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .server import Order

COMMAND = "expertflow"
WITH_PARENT = "expertflow.ipc.stage.run_with_parent"
FORKED = frozenset({
    COMMAND, "expertflow.runtime.verify", "expertflow.tests.kernels.faulty",
    "expertflow.tests.kernels.one_of_two",
    "expertflow.workers.surveyor", "expertflow.workers.surveyor.diagnosis", "expertflow.workers.surveyor.gguf",
})  # fmt: skip
"""Modules, besides the stages, whose processes are forks, also where `run_with_parent` runs them."""
FILES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
OTHERS = ("restore_signals", "gid", "gids", "uid", "umask", "start_new_session", "process_group")
NAMES = (
    "args", "executable", "preexec_fn", "close_fds", "pass_fds", "cwd", "env", "startupinfo", "creationflags", "shell",
    *FILES, *OTHERS,
)  # fmt: skip
"""What `Popen` gives to the method that starts the child, in this order."""


class Forks(Protocol):
    """What forks processes: `StageForks`."""

    def may_fork(self) -> bool:
        """Return whether a new process would read what the servers have read."""
        ...

    def knows(self, environment: Mapping[str, str]) -> bool:
        """Return whether the servers have read the same variables."""
        ...

    def fork(self, order: Order, descriptors: Sequence[int]) -> int:
        """Return the pid of a new child of this process."""
        ...


def forking_popen(forks: Forks) -> type[subprocess.Popen[Any]]:
    """Return a `Popen` that forks where the command line and the environment allow it."""

    class ForkingPopen(subprocess.Popen[Any]):
        """A child process, with all that `Popen` gives to it."""

        def _execute_child(self, *values: Any) -> None:
            asked: dict[str, Any] = dict(zip(NAMES, values, strict=True))
            if not may_be_fork(forks, asked):
                super()._execute_child(*values)  # type: ignore[misc]
                return
            order = order_of(asked)
            files = [asked["p2cread"], asked["c2pwrite"], asked["errwrite"]]
            standard = [number if file < 0 else file for number, file in enumerate(files)]
            self.pid = forks.fork(order, [*standard, *asked["pass_fds"]])
            self._child_created = True
            self._close_pipe_fds(*(asked[name] for name in FILES))  # type: ignore[attr-defined]

    return ForkingPopen


def may_be_fork(forks: Forks, asked: Mapping[str, Any]) -> bool:
    """Return whether a fork would be what is asked for."""
    module = forked_module(asked["args"])
    if not module or asked["executable"] or asked["start_new_session"] or not forks.may_fork():
        return False
    return module != COMMAND or asked["env"] is None or forks.knows(asked["env"])


def order_of(asked: Mapping[str, Any]) -> Order:
    """Return what is asked for, as an order for a server."""
    module, *arguments = asked["args"][3:]
    return Order(
        module,
        arguments,
        dict(os.environ if asked["env"] is None else asked["env"]),
        os.fspath(asked["cwd"] or os.getcwd()),
        [0, 1, 2, *asked["pass_fds"]],
        os.getpgid(0) if asked["process_group"] < 0 else asked["process_group"],
        asked["preexec_fn"],
        forks_stages=forked_module(asked["args"]) == COMMAND,
    )


def forked_module(arguments: object) -> str:
    """Return the module that a command line of this interpreter runs, if its process may be a fork; else nothing."""
    if not isinstance(arguments, list) or arguments[:3] != [sys.executable, "-P", "-m"]:
        return ""
    module = arguments[5] if arguments[3] == WITH_PARENT else arguments[3]
    return module if module in FORKED else ""
