"""Files of results: whole lines appended, synced about each second, cut off at the last whole line after a crash."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from pathlib import Path
from typing import Protocol

from ...errors import UsageError
from .errors import OutputError

FILE_MODE = 0o666
TAIL_BYTES = 1 << 16
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is reached", errno.EFBIG: "it is too large"}


class LineOutput(Protocol):
    """Where lines go."""

    def append(self, line: bytes) -> None:
        """Write one line with its end. Raises OutputError."""
        ...

    def sync(self) -> None:
        """Make what was written survive a crash of the machine. Raises OutputError."""
        ...

    def close(self) -> None:
        """Sync and close."""
        ...


class AppendFile:
    """A regular file that this process alone appends to. Lines are whole: one write each, taken back if it falls short.

    `append` and `close` belong to one thread, `sync` may run in another.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file, and cut off a last line without its end.

        Raises UsageError if it cannot be opened or is no regular file, or if another process writes it.
        """
        self.path = path
        self._fd = _open_alone(path)
        self._size = os.fstat(self._fd).st_size
        self._dirty = False
        self._lock = threading.Lock()
        self._cut_torn_line()

    @property
    def size_bytes(self) -> int:
        """Return the size of the whole lines."""
        return self._size

    def append(self, line: bytes) -> None:
        """Write one line with its end. Raises OutputError; then nothing of the line is in the file."""
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            raise self._error(error) from error
        if written < len(line):
            self._finish(line[written:])
        self._size += len(line)
        self._dirty = True

    def sync(self) -> None:
        """Wait until all lines are on the disk. Does nothing if there are none since the last call.

        Raises OutputError.
        """
        with self._lock:
            if not self._dirty or self._fd < 0:
                return
            self._dirty = False
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise self._error(error) from error

    def close(self) -> None:
        """Sync and close the file, which others may then write. Idempotent."""
        try:
            self.sync()
        finally:
            with self._lock:
                fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def _finish(self, rest: bytes) -> None:
        """Write the rest of a line that one write could not take. Raises OutputError after taking all of it back."""
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            raise self._error(error) from error

    def _cut_torn_line(self) -> None:
        end = self._size
        while end:
            start = max(0, end - TAIL_BYTES)
            newline = os.pread(self._fd, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < self._size:
            os.ftruncate(self._fd, end)
            self._size, self._dirty = end, True

    def _error(self, error: OSError) -> OutputError:
        return write_error(error, self.path)


def write_error(error: OSError, path: Path) -> OutputError:
    """Return the typed error of a write that failed."""
    reason = _FULL.get(error.errno or 0, error.strerror or str(error))
    remedy = "All results so far are kept. Make room, then give the same command again: it goes on from there"
    return OutputError(f"cannot be written: {reason}", str(path), remedy)


class StreamOutput:
    """Lines to a descriptor that cannot be read again, such as stdout. Nothing is resumed."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd, self._name = fd, name

    def append(self, line: bytes) -> None:
        """Write the line, waiting for the reader. Raises OutputError; BrokenPipeError if the reader has gone."""
        try:
            while line:
                line = line[os.write(self._fd, line) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise write_error(error, Path(self._name)) from error

    def sync(self) -> None:
        """Do nothing: a pipe has no disk."""

    def close(self) -> None:
        """Leave the descriptor open: it is not this object's."""


def _open_alone(path: Path) -> int:
    """Return a descriptor of a regular file that no other process writes. Raises UsageError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE)
    except OSError as error:
        remedy = "Name a file in a folder that exists and that you may write"
        raise UsageError(f"cannot be written: {error.strerror}", str(path), remedy) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            remedy = "Name a file, or give - to write to stdout"
            raise UsageError("is not a regular file, and so cannot be resumed", str(path), remedy)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except UsageError:
        os.close(fd)
        raise
    except OSError as error:
        os.close(fd)
        remedy = "Wait for its end, or name another file"
        raise UsageError("is being written by another run", str(path), remedy) from error
    return fd
