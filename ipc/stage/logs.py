"""Logs: one line an event with time, level, stage and pid, as text or JSON, from every process to one descriptor.

Set up only where a process begins. What prompts say is left out unless it is asked for, also in tracebacks.
"""

from __future__ import annotations

import logging
import os
import stat
import traceback
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from select import PIPE_BUF
from typing import Literal

import msgspec

from ...errors import ExpertFlowError, RequestError, UsageError

PACKAGE = __name__.partition(".")[0]
MAX_LINE_BYTES = 64 << 10
"""A longer event or traceback is cut. In a pipe only lines up to `select.PIPE_BUF` bytes stay in one piece."""
CUT = " … "
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) != "\t"}
"""Characters that a terminal obeys -> what a line of text has in their place."""
HIDDEN = "(message left out, as it may quote a request; --log-prompts shows it)"

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


class LogSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Destination and form of a process's log."""

    fd: int = -1
    """Descriptor, the same number in every process; -1: only warnings, to stderr."""
    format: LogFormat = "text"
    level: LogLevel = "info"
    prompts: bool = False
    """Prompts and outputs may be logged."""

    @property
    def tells_all(self) -> bool:
        """Return whether an error may quote a request: without a log it goes to the caller alone."""
        return self.prompts or self.fd < 0


class LogLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event, as a line of JSON."""

    time: str
    """UTC, ISO 8601 with milliseconds."""
    level: str
    stage: str
    pid: int
    event: str
    epoch: int = 0
    """Number of the stage's start; left out for a process that is no stage."""
    error: str = ""
    """Traceback, if there is one."""

    def as_text(self) -> str:
        """Return the line for people; line breaks inside are two characters, other controls their codes."""
        stage = f"{self.stage}.{self.epoch}" if self.epoch else self.stage
        whole = f"{self.time} {self.level:7} {stage}[{self.pid}] {self.event}"
        return "\\n".join(f"{whole}\n{self.error}".strip().splitlines()).translate(CONTROLS)


class LineFormatter(logging.Formatter):
    """Formats records of one process."""

    def __init__(self, spec: LogSpec, stage: str, epoch: int = 0) -> None:
        super().__init__()
        self._spec, self._stage, self._epoch = spec, stage, epoch
        self._max_bytes = PIPE_BUF if spec.fd >= 0 and stat.S_ISFIFO(os.fstat(spec.fd).st_mode) else MAX_LINE_BYTES

    def line(self, record: logging.LogRecord) -> LogLine:
        """Return a record as a line."""
        moment = datetime.fromtimestamp(record.created, UTC)
        return LogLine(
            time=moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            level=record.levelname.lower(),
            stage=self._stage,
            pid=os.getpid(),
            epoch=self._epoch,
            event=cut(_encodable(record.getMessage()), self._max_bytes // 4),
            error=cut(_encodable(self._error(record)), self._max_bytes // 4),
        )

    def _error(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        return error_text(error, self._spec.tells_all) if error else ""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, without its end."""
        line = self.line(record)
        return msgspec.json.encode(line).decode() if self._spec.format == "json" else line.as_text()


class DescriptorHandler(logging.Handler):
    """Writes each line at once to a descriptor that other processes write to as well."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # a full disk or a closed pipe must not stop the work
            os.write(self.fd, self.format(record).encode() + b"\n")


def remove_logging() -> None:
    """Undo `set_up_logging`, before its descriptor is closed."""
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each.formatter, LineFormatter)]:
        root.removeHandler(handler)
    logging.getLogger(PACKAGE).setLevel(logging.NOTSET)


def set_up_logging(spec: LogSpec, stage: str, epoch: int = 0) -> None:
    """Send the records of this process where `spec` says; warnings go to stderr as well, if that is another place.

    Another library's records are kept from warnings on.
    """
    root = logging.getLogger()
    formatter = LineFormatter(spec, stage, epoch)
    to_stderr = logging.StreamHandler()
    to_stderr.setLevel(logging.WARNING)
    handlers = [to_stderr] if spec.fd < 0 or epoch else []
    handlers += [DescriptorHandler(spec.fd)] if spec.fd >= 0 else []
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    if spec.fd >= 0:
        logging.getLogger(PACKAGE).setLevel(spec.level.upper())


def cut(text: str, max_bytes: int) -> str:
    """Return a text without its middle if it is too long: a traceback's end says most, an event's beginning."""
    if len(text.encode("utf-8", "replace")) <= max_bytes:
        return text
    kept = max_bytes // 8  # characters, of up to four bytes each, at either end
    return f"{text[:kept]}{CUT}{text[-kept:]}"


def _encodable(text: str) -> str:
    """Return a text without lone surrogates, as file names may have them: JSON cannot hold them."""
    return text.encode("utf-8", "replace").decode()


def error_text(error: BaseException, tells_all: bool) -> str:
    """Return the traceback of an error; messages that may quote a request are left out unless it `tells_all`."""
    if tells_all:
        return "".join(traceback.format_exception(error)).rstrip()
    parts = []
    for each in _chain(error):
        frames = "".join(traceback.format_tb(each.__traceback__))
        known = isinstance(each, ExpertFlowError) and not isinstance(each, RequestError | UsageError)
        parts.append(f"{frames}{type(each).__name__}: {each if known else HIDDEN}")
    return "\n".join(parts)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the causes of an error, the first one first, then the error."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _chain(before)
    yield error
