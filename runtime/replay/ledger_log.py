"""A ledger's log replayed through a fresh ledger: the same events must give the same statistics."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ...workers.loader.ledger_log import LedgerMark, read_ledger_log


class LogReplay(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a replay. `recorded`: statistics at the last mark, empty without one; `replayed`: the ledger's."""

    events: int
    marks: int
    equal_marks: int
    recorded: dict[str, int | float]
    replayed: dict[str, int | float]

    @property
    def same(self) -> bool:
        """Tell whether the statistics were equal at every mark."""
        return self.equal_marks == self.marks


def replay_ledger_log(file: str | Path) -> LogReplay:
    """Replay a log through a fresh ledger. Raises UsageError if the file is no log of a ledger."""
    header, records = read_ledger_log(file)
    ledger = header.make()
    events = marks = equal = 0
    recorded: dict[str, int | float] = {}
    replayed = msgspec.to_builtins(ledger.statistics())
    for record in records:
        if not isinstance(record, LedgerMark):
            ledger.handle(record)
            events += 1
            continue
        recorded, replayed = record.statistics, msgspec.to_builtins(ledger.statistics())
        marks, equal = marks + 1, equal + (recorded == {name: replayed.get(name) for name in recorded})
    return LogReplay(events=events, marks=marks, equal_marks=equal, recorded=recorded, replayed=replayed)
