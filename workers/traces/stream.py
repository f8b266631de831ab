"""Files of a trace: MessagePack records, each written at once, so that a death truncates at most the last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from ...errors import UsageError
from ...ipc.shared.output_file import OutputFile
from .message_stream import read_packed
from .records import VERSION, TraceHeader, TraceRecord

REMEDY = "Give the folder of a trace, as `expertflow trace` writes it"


class TraceFile:
    """File of one start of one stage, which must close it. A full disk ends the trace, never the engine."""

    def __init__(self, folder: str, header: TraceHeader) -> None:
        """Create FOLDER/STAGE.EPOCH.msgpack. Raises UsageError if it cannot be written."""
        self._file = OutputFile(Path(folder, f"{header.stage}.{header.epoch}.msgpack"), "trace")
        self._encoder = msgspec.msgpack.Encoder()
        self.write(header)

    def write(self, record: TraceRecord) -> None:
        """Add a record; other processes can read it when this returns."""
        self._file.write(self._encoder.encode(record))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_records(file: Path) -> Iterator[TraceRecord]:
    """Yield all records of a file, the header first; a truncated last record is left out, the file may still grow.

    Raises UsageError if the file is no trace, or a trace of a newer version.
    """
    for record in read_packed(file, TraceRecord, "trace", REMEDY):
        if isinstance(record, TraceHeader) and record.version > VERSION:
            what = f"has version {record.version}; this is ExpertFlow for versions up to {VERSION}"
            raise UsageError(what, str(file), "Use a newer ExpertFlow")
        yield record
