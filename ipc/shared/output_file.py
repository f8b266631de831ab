"""A file that an engine writes beside its work: a disk that fills or fails ends the file, never the engine."""

from __future__ import annotations

import logging
from pathlib import Path

from ...errors import UsageError


class OutputFile:
    """A file opened anew. The first write that fails is logged and the last: what was written before stays."""

    def __init__(self, path: Path, what: str, buffering: int = -1) -> None:
        """Open the file; `what` names its content in the log. Raises UsageError if it cannot be opened."""
        self._path, self._what = path, what
        try:
            self._file = path.open("wb", buffering=buffering)
        except OSError as error:
            raise UsageError(f"cannot be written: {error.strerror}", str(path), "Give another place") from error

    @property
    def closed(self) -> bool:
        """Return whether nothing is written any more."""
        return self._file.closed

    def write(self, data: bytes) -> None:
        """Append bytes, all of them; does nothing once a write has failed."""
        left = memoryview(data)
        try:
            while left and not self._file.closed:
                left = left[self._file.write(left) or 0 :]
        except OSError as error:
            self._end(error)

    def flush(self) -> None:
        """Hand all bytes to the system."""
        try:
            if not self._file.closed:
                self._file.flush()
        except OSError as error:
            self._end(error)

    def end(self, error: OSError) -> None:
        """End the file, since something that belongs to it could not be written."""
        if not self._file.closed:
            self._end(error)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self.flush()
        self._close_quietly()

    def _end(self, error: OSError) -> None:
        logging.getLogger(__name__).warning("%s: %s; the %s ends here", self._path, error.strerror, self._what)
        self._close_quietly()

    def _close_quietly(self) -> None:
        """Close the file although its last bytes cannot be written: closing flushes and fails again."""
        try:
            self._file.close()
        except OSError:
            logging.getLogger(__name__).debug("%s: closed with unwritten bytes", self._path)
