"""Child processes of an engine: started, watched by a descriptor, ended, reaped with a description of their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import zmq

from ...errors import EngineError
from .stages import StagePlan

MAX_LOG_LINES = 15
"""Lines of a dead child's output that its error quotes."""
PROGRESS_BAR = "%|"
"""Mark of the progress bars that libraries draw while they load; they do not explain an end."""


class Child:
    """A started stage. `pidfd` is readable once the stage has ended (a SIGKILL is seen within a millisecond)."""

    def __init__(self, stage: str, epoch: int, process: subprocess.Popen[bytes], log: Path | None) -> None:
        self.stage = stage
        self.epoch = epoch
        self.pid = process.pid
        self.pidfd = os.pidfd_open(process.pid)
        self.exit_code: int | None = None
        self._process, self._log = process, log

    def send(self, number: signal.Signals) -> None:
        """Send a signal; does nothing if the child has ended."""
        self._process.send_signal(number)

    def reap(self) -> EngineError:
        """Reap an ended child and return a description of its end; only once `pidfd` is readable."""
        self.exit_code = self._process.wait()
        os.close(self.pidfd)
        return EngineError(describe_exit(self.exit_code), f"stage {self.stage}", self._last_output())

    def _last_output(self) -> str:
        lines = tail(self._log, MAX_LOG_LINES) if self._log else ""
        return f"Its last output:\n{lines}" if lines else ""


class ChildSet:
    """The living children of an engine, at most one a stage; a poller sees their ends."""

    def __init__(self, poller: zmq.Poller) -> None:
        self._poller = poller
        self._children: dict[str, Child] = {}

    def has_any(self, stages: Collection[str]) -> bool:
        """Return whether a child of one of these stages lives."""
        return not self._children.keys().isdisjoint(stages)

    def add(self, child: Child) -> None:
        """Watch a child."""
        self._children[child.stage] = child
        self._poller.register(child.pidfd, zmq.POLLIN)

    def take_ended(self, ready: dict[object, int]) -> list[Child]:
        """Remove and return the children whose descriptor is in `ready`: they have ended and must be reaped."""
        ended = [child for child in self._children.values() if child.pidfd in ready]
        for child in ended:
            del self._children[child.stage]
            self._poller.unregister(child.pidfd)
        return ended

    def signal(self, number: signal.Signals, selects: Callable[[Child], bool] = lambda child: True) -> None:
        """Send a signal to every child that `selects` accepts."""
        for child in self._children.values():
            if selects(child):
                child.send(number)


def spawn(plan: StagePlan, epoch: int, socket_fd: int, fds: list[int], log: Path | None) -> Child:
    """Start `python ARGUMENTS… SOCKET_FD OUR_PID`, which inherits `fds` too; output goes to `log` or to our stderr.

    The child gets a process group of its own, so that Ctrl-C reaches the supervisor alone.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600) if log else os.dup(2)
    try:
        arguments = (*plan.arguments, str(socket_fd), str(os.getpid()))
        process = start_python(arguments, {**os.environ, **plan.environment}, output, [socket_fd, *fds])
    finally:
        os.close(output)
    _lower_priority(process.pid, plan.nice)
    return Child(plan.stage, epoch, process, log)


def start_python(
    arguments: Sequence[str], environment: dict[str, str], output: int, fds: Sequence[int]
) -> subprocess.Popen[bytes]:
    """Start this interpreter in a process group of its own; it inherits `fds`."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment,
        pass_fds=fds,
        process_group=0,
    )


def describe_exit(code: int) -> str:
    """Return the meaning of an exit code of `subprocess`, in words."""
    if code == -signal.SIGKILL:
        return "was killed with SIGKILL; if nobody did that on purpose, the machine ran out of memory"
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"was killed with {names.get(-code, f'signal {-code}')}"
    return f"ended by itself with exit code {code}"


def tail(file: Path, lines: int, max_bytes: int = 8192) -> str:
    """Return the last lines of a file, progress bars left out; empty if the file is missing."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - max_bytes))
            text = opened.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    kept = [line for line in text.splitlines() if PROGRESS_BAR not in line]
    return "\n".join(kept[-lines:])


def _lower_priority(pid: int, nice: int) -> None:
    """Lower the priority at once: threads started later inherit it."""
    if nice:
        try:
            os.setpriority(os.PRIO_PROCESS, pid, nice)
        except ProcessLookupError:  # it has ended; its pidfd reports that
            return
