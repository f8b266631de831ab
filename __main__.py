"""The command line: `expertflow …` or `python -m expertflow …`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

STOPPED = 130
"""Exit code after Ctrl-C."""


def main() -> int:
    """Run the command that the arguments of this process describe; return the exit code.

    Ctrl-C ends the process without a traceback from here on. Before the command runs there is nothing to stop, so the
    process exits at once: an exception inside an import has made extension modules crash. When the command is over,
    Ctrl-C is ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in a shell's background
        signal.signal(signal.SIGINT, _exit_at_once)
    try:
        from .runtime.command_line.program import run_program

        return run_program(sys.argv[1:], _restore_interrupt)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return STOPPED
    finally:
        _ignore_interrupt()


def _ignore_interrupt() -> None:
    """Ignore Ctrl-C while Python ends: the command is over, and its exit code is known."""
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _exit_at_once):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _restore_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _exit_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    """Handle SIGINT without an exception."""
    os.write(2, b"stopped\n")
    os._exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main())
