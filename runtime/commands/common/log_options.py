"""Options of a command for the log of all its processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from ....errors import UsageError
from ....ipc.stage.logs import LogFormat, LogLevel, LogSpec, remove_logging, set_up_logging
from ...command_line.base import Command

SUPERVISOR = "supervisor"


@dataclass(frozen=True, kw_only=True)
class LogCommand(Command):
    """A command whose processes log."""

    option_groups: ClassVar = {"Log": ("log_file", "log_format", "log_level", "log_prompts")}

    log_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Append the log of all processes to this file; without it the log goes to stderr."""
    log_format: LogFormat = "text"
    """text: a line an event, for people; json: an object a line."""
    log_level: Literal["auto", LogLevel] = "auto"
    """Least level that is logged; auto: warning on a terminal, else info."""
    log_prompts: bool = False
    """Log prompts and outputs, too. Without it they are left out, also where an error quotes them."""

    @contextmanager
    def log(self) -> Iterator[LogSpec]:
        """Yield the log of this process and of those that it starts.

        Raises UsageError for a file that cannot be opened.
        """
        descriptor = self._open()
        try:
            spec = LogSpec(fd=descriptor, format=self.log_format, level=self._level(), prompts=self.log_prompts)
            set_up_logging(spec, SUPERVISOR)
            yield spec
        finally:
            remove_logging()
            os.close(descriptor)

    def _open(self) -> int:
        if self.log_file is None:
            return os.dup(sys.stderr.fileno())
        try:
            return os.open(self.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            what = f"cannot be opened: {error.strerror}"
            raise UsageError(what, str(self.log_file), "Name a file in a folder that you can write") from error

    def _level(self) -> LogLevel:
        if self.log_level != "auto":
            return self.log_level
        return "warning" if self.log_file is None and sys.stderr.isatty() else "info"
