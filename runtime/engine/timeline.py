"""Spans of all stages in Chrome's trace format (chrome://tracing, Perfetto), written as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ...errors import UsageError
from ...ipc.messages import Span


class Timeline:
    """A JSON array of events, complete once closed. Every stage is a process of the trace, every lane a thread."""

    def __init__(self, path: str) -> None:
        """Raises UsageError if the file cannot be written."""
        try:
            self._file = Path(path).open("wb")  # noqa: SIM115 - open as long as the engine lives
        except OSError as error:
            raise UsageError(f"cannot be written: {error.strerror}", path, "Give another file as timeline") from error
        self._file.write(b"[")
        self._first = True
        self._numbers: dict[str, int] = {}

    def write(self, stage: str, spans: list[Span]) -> None:
        """Add what a stage did; times become microseconds of the machine's monotonic clock."""
        for span in spans:
            self._append(
                ph="X",
                name=span.name,
                pid=self._number(stage),
                tid=span.lane,
                ts=span.start_ns / 1000,
                dur=(span.end_ns - span.start_ns) / 1000,
                args=span.detail,
            )

    def close(self) -> None:
        if not self._file.closed:
            self._file.write(b"\n]\n")
            self._file.close()

    def _number(self, stage: str) -> int:
        if stage not in self._numbers:
            number = self._numbers[stage] = len(self._numbers) + 1
            self._append(ph="M", name="process_name", pid=number, tid=0, args={"name": stage})
        return self._numbers[stage]

    def _append(self, **event: Any) -> None:
        self._file.write(b"\n" if self._first else b",\n")
        self._file.write(msgspec.json.encode(event))
        self._first = False
