"""How a command ends: its exit code, and what stderr says when something went wrong."""

from __future__ import annotations

import os
import re
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
    """What, where, what to do; each on a line of its own. Options are named as they are typed."""
    where = as_option(error.where)
    subject = where if error.lacks_subject else ""
    lines = [f"error: {subject} {as_typed(error.what)}" if subject else f"error: {as_typed(error.what)}"]
    if where and not subject:
        lines.append(f"where: {where}")
    if error.remedy:
        lines.append(f"to do: {as_typed(error.remedy)}")
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


def as_option(where: str) -> str:
    """Return the flag of an option that an error names; other places stay as they are."""
    return _flag(where) if where in option_names() else where


def as_typed(text: str) -> str:
    """Replace options that an error's text names as Python does: `kv_memory`, `tier = host`."""
    names = sorted(option_names(), key=len, reverse=True)
    given = re.compile(rf"(?<![\w/.-])({'|'.join(names)}) ?= ?(?=[\w/])")
    named = re.compile(rf"(?<![\w/.-])({'|'.join(name for name in names if '_' in name)})(?![\w/-]|\.\w)")
    text = given.sub(lambda found: f"{_flag(found[1])} ", text)
    return named.sub(lambda found: _flag(found[1]), text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _show_traceback(debug: bool) -> None:
    if debug:
        traceback.print_exc()
