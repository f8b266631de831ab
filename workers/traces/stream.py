"""Files of a trace: MessagePack records, each written at once, so that a death truncates at most the last."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ...errors import UsageError
from .message_stream import read_packed
from .records import VERSION, TraceHeader, TraceRecord

REMEDY = "Give the folder of a trace, as `expertflow trace` writes it"


class TraceFile:
    """File of one start of one stage, which must close it. A full disk ends the trace, never the engine."""

    def __init__(self, folder: str, header: TraceHeader) -> None:
        """Create FOLDER/STAGE.EPOCH.msgpack. Raises UsageError if it cannot be written."""
        self._path = Path(folder, f"{header.stage}.{header.epoch}.msgpack")
        try:
            self._file = self._path.open("wb")
        except OSError as error:
            raise UsageError(f"cannot be written: {error.strerror}", str(self._path), "Give another folder") from error
        self._encoder = msgspec.msgpack.Encoder()
        self.write(header)

    def write(self, record: TraceRecord) -> None:
        """Add a record; other processes can read it when this returns."""
        if self._file.closed:
            return
        try:
            self._file.write(self._encoder.encode(record))
            self._file.flush()
        except OSError as error:
            logging.getLogger(__name__).warning("%s: %s; the trace ends here", self._path, error.strerror)
            self._close_quietly()

    def close(self) -> None:
        self._file.close()

    def _close_quietly(self) -> None:
        """Close the file although its last bytes cannot be written: closing flushes and fails again."""
        try:
            self._file.close()
        except OSError:
            logging.getLogger(__name__).debug("%s: closed with unwritten bytes", self._path)


def read_records(file: Path) -> Iterator[TraceRecord]:
    """Yield all records of a file, the header first; a truncated last record is left out, the file may still grow.

    Raises UsageError if the file is no trace, or a trace of a newer version.
    """
    for record in read_packed(file, TraceRecord, "trace", REMEDY):
        if isinstance(record, TraceHeader) and record.version > VERSION:
            what = f"has version {record.version}; this is ExpertFlow for versions up to {VERSION}"
            raise UsageError(what, str(file), "Use a newer ExpertFlow")
        yield record
