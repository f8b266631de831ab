"""One child process: started, watched by a descriptor, ended, and asked afterwards what happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from ...errors import EngineError
from .stages import StagePlan

LAST_LINES = 15


class Child:
    """A started stage. `pidfd` can be read once it has ended (a SIGKILL is seen within a millisecond)."""

    def __init__(self, stage: str, epoch: int, process: subprocess.Popen[bytes], log: Path | None) -> None:
        self.stage = stage
        self.epoch = epoch
        self.pid = process.pid
        self.pidfd = os.pidfd_open(process.pid)
        self.exit_code: int | None = None
        self._process, self._log = process, log

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended."""
        self._process.send_signal(number)

    def reap(self) -> EngineError:
        """Collect an ended child and say how it ended; only after `pidfd` could be read."""
        self.exit_code = self._process.wait()
        os.close(self.pidfd)
        return EngineError(describe_exit(self.exit_code), f"stage {self.stage}", self._last_words())

    def _last_words(self) -> str:
        lines = tail(self._log, LAST_LINES) if self._log else ""
        return f"Its last words:\n{lines}" if lines else ""


def spawn(plan: StagePlan, epoch: int, line_fd: int, fds: list[int], log: Path | None) -> Child:
    """`python ARGUMENTS… LINE_FD OUR_PID`, which inherits `fds` too; its output goes to `log`, or to our own stderr.

    It gets a process group of its own, so that Ctrl-C reaches the supervisor alone.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600) if log else os.dup(2)
    try:
        process = subprocess.Popen(
            [sys.executable, *plan.arguments, str(line_fd), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **plan.environment},
            pass_fds=[line_fd, *fds],
            process_group=0,
        )
    finally:
        os.close(output)
    _be_nice(process.pid, plan.nice)
    return Child(plan.stage, epoch, process, log)


def describe_exit(code: int) -> str:
    """What an exit code of `subprocess` means, in words."""
    if code == -signal.SIGKILL:
        return "was killed with SIGKILL; if nobody did that on purpose, the machine ran out of memory"
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"was killed with {names.get(-code, f'signal {-code}')}"
    return f"ended by itself with exit code {code}"


PROGRESS_BAR = "%|"
"""What libraries draw while they load; it says nothing of an end."""


def tail(file: Path, lines: int, most_bytes: int = 8192) -> str:
    """The last lines of a file, which may be missing."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - most_bytes))
            text = opened.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    words = [line for line in text.splitlines() if PROGRESS_BAR not in line]
    return "\n".join(words[-lines:])


def _be_nice(pid: int, nice: int) -> None:
    """Lower the priority at once: threads started later inherit it."""
    if nice:
        try:
            os.setpriority(os.PRIO_PROCESS, pid, nice)
        except ProcessLookupError:  # gone already; its pidfd will say so
            return
