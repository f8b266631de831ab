"""The command line: `expertflow …` or `python -m expertflow …`."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

from . import __version__
from .errors import ExpertFlowError
from .runtime.commands.outcome import TERMINATED, forget_stdout, report, report_bug, report_stop
from .runtime.commands.registry import parse


def main() -> int:
    """Run the command that the arguments of this process describe; returns the exit code."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        sys.stdout.write(f"expertflow {__version__}\n")
        return 0
    signal.signal(signal.SIGTERM, _terminate)
    return _run(arguments, debug="--debug" in arguments)


def _run(arguments: list[str], debug: bool) -> int:
    try:
        return parse(arguments).run()
    except KeyboardInterrupt:
        return report_stop()
    except BrokenPipeError:
        return forget_stdout()
    except ExpertFlowError as error:
        return report(error, debug)
    except Exception as error:  # noqa: BLE001 - the boundary of the process: a person sees words, not a traceback
        return report_bug(error, debug)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM unwinds like Ctrl-C, so that an engine is stopped and not orphaned."""
    sys.exit(TERMINATED)


if __name__ == "__main__":
    sys.exit(main())
