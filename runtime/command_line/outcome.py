"""The end of a command: its exit code, and the text of errors on stderr."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise

from ...errors import BudgetError, BusyError, CheckpointError, ExpertFlowError, RequestError, UsageError
from .base import FAILED, WRONG_USAGE
from .registry import flag_names, option_names

STOPPED = 130
TERMINATED = 143

_WRONG_INPUT = (UsageError, CheckpointError, BudgetError, RequestError)


def exit_code(error: ExpertFlowError) -> int:
    """Return 2 for what the user can correct in the command or its input, 1 for other failures."""
    return WRONG_USAGE if isinstance(error, _WRONG_INPUT) and not isinstance(error, BusyError) else FAILED


def describe(error: ExpertFlowError, arguments: Sequence[str] = ()) -> str:
    """Return lines with what is wrong, where, and what to do. Options are named as they are typed.

    A place that is the value of one of the `arguments` gets its option before it: `--model /nope`.
    """
    where = as_option(error.where, arguments)
    subject = where if error.lacks_subject else ""
    lines = [f"error: {subject} {as_typed(error.what)}" if subject else f"error: {as_typed(error.what)}"]
    if where and not subject:
        lines.append(f"where: {where}")
    if error.remedy:
        lines.append(f"to do: {as_typed(error.remedy)}")
    return "\n".join(lines)


def report(error: ExpertFlowError, arguments: Sequence[str]) -> int:
    """Write the error of a command with these arguments to stderr and return the exit code."""
    _show_traceback("--debug" in arguments)
    sys.stderr.write(describe(error, arguments) + "\n")
    return exit_code(error)


def report_bug(error: Exception, debug: bool) -> int:
    """Write an unexpected exception to stderr as a bug and return the exit code."""
    _show_traceback(debug)
    advice = "" if debug else "to do: Run it again with --debug for the traceback, and report it\n"
    sys.stderr.write(f"error: {type(error).__name__}: {error}\nwhere: expertflow itself; this is a bug\n{advice}")
    return FAILED


def report_stop() -> int:
    """Say on stderr that Ctrl-C stopped the command; return the exit code. A further Ctrl-C finds nothing to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stderr.write("stopped\n")
    return STOPPED


def discard_stdout() -> int:
    """Discard all output from now on, for its reader has gone (`… | head`); return the exit code.

    Python would write what is buffered when it ends, and fail again.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


def as_option(where: str, arguments: Sequence[str] = ()) -> str:
    """Return the flag of an option that an error names; before a value that was typed, the option that it is of."""
    if where in option_names():
        return _flag(where)
    option = _option_of(where, arguments)
    return f"{option} {where}" if option else as_typed(where)


def _option_of(value: str, arguments: Sequence[str]) -> str:
    """Return the option that was typed with this value, empty if none was. A path is compared without `./` and `//`."""
    flags = {_flag(name) for name in flag_names()}
    for word, following in pairwise([*arguments, ""]):
        option, equals, attached = word.partition("=")
        takes_value = option.startswith("--") and option not in flags
        if takes_value and value and _same(attached if equals else following, value):
            return option
    return ""


def _same(typed: str, value: str) -> bool:
    return typed == value or (bool(typed) and os.path.normpath(typed) == value)


def as_typed(text: str) -> str:
    """Replace options in an error's text that are named as in Python (`kv_memory`, `tier = host`) by their flags."""
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
