"""Everything that a ledger heard, in order, so that it can be asked again: `expertflow replay --ledger-log`.

`ledger.EPOCH.msgpack` in the folder of a recording: a stream of MessagePack messages, first the header.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from ...errors import UsageError
from ...ipc.shared.output_file import OutputFile
from ..traces.message_stream import read_packed
from .events import LedgerEvent
from .ledger import Ledger
from .policies import make_policy
from .statistics import LedgerStatistics

VERSION = 2
MAX_SIZE = 1 << 18
"""Most slots of a ledger that is replayed, and most experts of all its layers: memory is reserved for each."""
Size = Annotated[int, Meta(ge=1, le=MAX_SIZE)]
REMEDY = "Give a file ledger.EPOCH.msgpack, as an engine with record=FOLDER writes it"


class LedgerHeader(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Arguments of a ledger (see `Ledger`)."""

    version: int = VERSION
    slots: Size
    layers: Size
    experts: Size
    top_k: Size
    policy: str
    fills_in_flight: Annotated[int, Meta(ge=0, le=1 << 16)] = 2
    recalls_ahead: Annotated[int, Meta(ge=0, le=MAX_SIZE)] | None = None
    by_layer: bool = False
    whole_layers: bool = False
    rank_victims: str = "auto"
    uncalibrated: bool = False
    volatile: bool = False

    def make(self, explain: bool = False) -> Ledger:
        """Return a fresh ledger; `explain`: one that takes notes. Raises UsageError for an unknown policy."""
        return Ledger(
            self.slots,
            self.layers,
            self.experts,
            self.top_k,
            make_policy(self.policy, self.layers, self.experts, self.top_k),
            fills_in_flight=self.fills_in_flight,
            recalls_ahead=self.recalls_ahead,
            by_layer=self.by_layer,
            whole_layers=self.whole_layers,
            rank_victims=self.rank_victims,
            uncalibrated=self.uncalibrated,
            volatile=self.volatile,
            explain=explain,
        )


class LedgerMark(msgspec.Struct, frozen=True, tag=True):
    """Statistics of the ledger after all events before."""

    statistics: dict[str, int | float]


LedgerRecord = LedgerHeader | LedgerMark | LedgerEvent


class LedgerLog:
    """Written by one start of the loader; without a folder nothing is written."""

    def __init__(self, file: OutputFile | None) -> None:
        self._file = file
        self._encoder = msgspec.msgpack.Encoder()

    @classmethod
    def open(cls, folder: str, epoch: int, header: LedgerHeader) -> LedgerLog:
        """Start the file of epoch `epoch` in `folder` (made if needed); an empty name records nothing."""
        if not folder:
            return cls(None)
        Path(folder).mkdir(parents=True, exist_ok=True)
        log = cls(OutputFile(Path(folder, f"ledger.{epoch}.msgpack"), "log of the ledger", 1 << 16))
        log._write(header)
        return log

    def write(self, event: LedgerEvent) -> None:
        """To be called before the ledger handles the event."""
        self._write(event)

    def mark(self, statistics: LedgerStatistics) -> None:
        """Note how the ledger stands, now and then and at the end; all that was written until then is on its way to
        the disk."""
        self._write(LedgerMark(msgspec.to_builtins(statistics)))
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, record: LedgerRecord) -> None:
        if self._file is not None:
            self._file.write(self._encoder.encode(record))


def read_ledger_log(file: str | Path) -> tuple[LedgerHeader, Iterator[LedgerEvent | LedgerMark]]:
    """The header and all that follows; a torn last message is left out.

    Raises UsageError, also while iterating, when the file cannot be read or holds something else.
    """
    records = read_packed(Path(file), LedgerRecord, "log of a ledger", REMEDY)
    header = next(records, None)
    if not isinstance(header, LedgerHeader):
        raise UsageError("does not begin with the header of a ledger's log", str(file), REMEDY)
    if header.layers * header.experts > MAX_SIZE or header.top_k > header.experts:
        what = f"is of {header.layers} layers with {header.experts} experts, top {header.top_k}, which cannot be"
        raise UsageError(what, str(file), REMEDY)
    if header.version != VERSION:
        what = f"has version {header.version}; this ExpertFlow reads version {VERSION}"
        remedy = "Use a newer ExpertFlow" if header.version > VERSION else "Record the run again (record=FOLDER)"
        raise UsageError(what, str(file), remedy)
    return header, (record for record in records if not isinstance(record, LedgerHeader))
