"""A stage of tests: writes what it was started with to its output and ends with the code that it is told."""

from __future__ import annotations

import json
import os
import signal
import sys


def main() -> None:
    """Tell, then end."""
    code, reads = int(sys.argv[1]), int(sys.argv[2])
    told = {
        "arguments": sys.argv[1:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "read": os.read(reads, 100).decode(),
        "stdin": os.readlink("/proc/self/fd/0"),
        "parent": os.getppid(),
        "group": os.getpgid(0),
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "imported": "imported_before" in sys.modules,
        "server": "expertflow.tests.forking.forks" in sys.modules,
        "signals": signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN,
        "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
    }
    print(json.dumps(told), flush=True)  # noqa: T201 - its output is what is tested
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
