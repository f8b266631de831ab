"""The command line: `expertflow …` or `python -m expertflow …`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

STOPPED = 130
"""Exit code after Ctrl-C."""


def main() -> int:
    """Run the command that the arguments of this process describe; returns the exit code.

    Ctrl-C ends it without a traceback from here on. Until the command runs there is nothing to stop, so the process
    leaves at once: an exception inside of an import has made extension modules crash.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in a shell's background
        signal.signal(signal.SIGINT, _leave)
    try:
        from .runtime.command_line.program import run_program

        return run_program(sys.argv[1:], _heed_as_usual)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return STOPPED
    finally:
        _heed_as_usual()


def _heed_as_usual() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped\n")
    os._exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main())
