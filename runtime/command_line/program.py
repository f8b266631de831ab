"""The command line from arguments to exit code. Imports everything that `__main__` must not import early."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from ...errors import ExpertFlowError
from .outcome import TERMINATED, discard_stdout, report, report_bug, report_stop
from .registry import parse
from .version import version_lines


def run_program(arguments: list[str], before_run: Callable[[], None] = lambda: None) -> int:
    """Run the command that the arguments describe and return its exit code.

    `before_run` is called after all imports: from then on Ctrl-C has something to stop.
    """
    if arguments == ["--version"]:
        sys.stdout.write("\n".join(version_lines()) + "\n")
        return 0
    signal.signal(signal.SIGTERM, _terminate)
    return _run(arguments, before_run)


def _run(arguments: list[str], before_run: Callable[[], None]) -> int:
    try:
        command = parse(arguments)
        before_run()
        return command.run()
    except KeyboardInterrupt:
        return report_stop()
    except BrokenPipeError:
        return discard_stdout()
    except ExpertFlowError as error:
        return report(error, arguments)
    except Exception as error:  # noqa: BLE001 - the boundary of the process: users see a message, not a traceback
        return report_bug(error, "--debug" in arguments)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Unwind on SIGTERM as on Ctrl-C, so that an engine is stopped and not orphaned. A second one leaves at once."""
    signal.signal(signal.SIGTERM, _leave)
    sys.exit(TERMINATED)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Leave at once: processes see the end of this one, and the next start removes the run directory."""
    os._exit(TERMINATED)
