"""A command of tests: starts a process, writes what that tells, and waits to be killed; and what is called before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from expertflow.tests.forking import commands

TELLING = "expertflow.tests.forking.telling"


def main() -> None:
    """Start, tell, wait."""
    commands.FORKED |= {TELLING}
    reads, writes = os.pipe()
    os.write(writes, b"-")
    words = [sys.executable, "-P", "-m", TELLING, "0", str(reads)]
    told = subprocess.run(words, capture_output=True, text=True, pass_fds=[reads], check=True).stdout
    print(told.strip(), flush=True)  # noqa: T201 - its output is what is tested
    signal.pause()


def ignore_user_signals() -> None:
    """Ignore SIGUSR1, before the module runs."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


if __name__ == "__main__":
    main()
