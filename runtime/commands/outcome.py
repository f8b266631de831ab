"""How a command ends: its exit code, and what stderr says when something went wrong."""

from __future__ import annotations

import os
import sys
import traceback

from ...errors import BudgetError, BusyError, CheckpointError, ExpertFlowError, RequestError, UsageError
from .base import FAILED, WRONG_USAGE
from .registry import option_names

STOPPED = 130
TERMINATED = 143

_WRONG_INPUT = (UsageError, CheckpointError, BudgetError, RequestError)


def exit_code(error: ExpertFlowError) -> int:
    """2 for what the user can put right in the command or its input, 1 for what failed."""
    return WRONG_USAGE if isinstance(error, _WRONG_INPUT) and not isinstance(error, BusyError) else FAILED


def describe(error: ExpertFlowError) -> str:
    """What, where, what to do; each on a line of its own."""
    lines = [f"error: {error.what}"]
    if error.where:
        lines.append(f"where: {_as_option(error.where)}")
    if error.remedy:
        lines.append(f"to do: {error.remedy}")
    return "\n".join(lines)


def report(error: ExpertFlowError, debug: bool) -> int:
    """Tell stderr; returns the exit code."""
    _show_traceback(debug)
    sys.stderr.write(describe(error) + "\n")
    return exit_code(error)


def report_bug(error: Exception, debug: bool) -> int:
    """Something nobody thought of."""
    _show_traceback(debug)
    advice = "" if debug else "to do: Run it again with --debug for the traceback, and report it\n"
    sys.stderr.write(f"error: {type(error).__name__}: {error}\nwhere: expertflow itself; this is a bug\n{advice}")
    return FAILED


def report_stop() -> int:
    """Ctrl-C."""
    sys.stderr.write("stopped\n")
    return STOPPED


def forget_stdout() -> int:
    """Whoever read our output has gone (`… | head`): nothing more is written, not even when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


def _as_option(where: str) -> str:
    return f"--{where.replace('_', '-')}" if where in option_names() else where


def _show_traceback(debug: bool) -> None:
    if debug:
        traceback.print_exc()
