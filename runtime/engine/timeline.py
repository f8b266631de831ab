"""Spans of all stages in Chrome's trace format (chrome://tracing, Perfetto), written and read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from ...errors import UsageError
from ...ipc.messages import Span
from ...ipc.shared.output_file import OutputFile


class _Event(msgspec.Struct):
    """The fields of an event that `read_timeline` reads."""

    ph: Literal["X", "M"]
    name: str
    pid: int
    tid: int = 0
    ts: float = 0.0
    dur: float = 0.0
    args: dict[str, int | str] = {}


def read_timeline(path: Path) -> Iterator[tuple[str, Span]]:
    """Yield (stage, span) in the order of writing; an event that is cut off at the end is left out.

    Raises UsageError, also while iterating, if the file cannot be read or is no timeline.
    """
    try:
        with path.open("rb") as file:
            yield from decode_timeline(file, str(path))
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", str(path), "Give another file") from error


def decode_timeline(lines: Iterable[bytes], where: str) -> Iterator[tuple[str, Span]]:
    """Yield (stage, span) of the lines of a timeline, as `read_timeline`. Raises UsageError about `where`."""
    decoder, stages = msgspec.json.Decoder(_Event), dict[int, str]()
    try:
        for event in _decode_events(lines, decoder):
            if event.ph == "M":
                stages[event.pid] = str(event.args["name"])
            else:
                start_ns, end_ns = round(1000 * event.ts), round(1000 * (event.ts + event.dur))
                yield stages[event.pid], Span(event.name, start_ns, end_ns, event.tid, event.args)
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError, OverflowError, RecursionError) as error:
        remedy = "Give a file that an engine with --timeline FILE wrote"
        raise UsageError(f"is no timeline ({error})", where, remedy) from error


def _decode_events(lines: Iterable[bytes], decoder: msgspec.json.Decoder[_Event]) -> Iterator[_Event]:
    """Yield the events, one a line; only the last line may be incomplete."""
    lines = iter(lines)
    if next(lines, b"").strip() != b"[":
        raise msgspec.DecodeError("it does not begin with a list")
    cut_off: msgspec.MsgspecError | None = None
    for line in lines:
        if cut_off is not None:
            raise cut_off
        text = line.strip().rstrip(b",")
        if text in (b"", b"]"):
            continue
        try:
            yield decoder.decode(text)
        except msgspec.MsgspecError as error:
            if line.endswith(b"\n"):
                raise
            cut_off = error


class Timeline:
    """Writer of a JSON array of events, complete once closed. A stage is a process of the trace, a lane a thread."""

    def __init__(self, path: str) -> None:
        """Open the file. Raises UsageError if it cannot be written; later a full disk ends the timeline alone."""
        self._file = OutputFile(Path(path), "timeline")
        self._file.write(b"[")
        self._first = True
        self._numbers: dict[str, int] = {}

    def write(self, stage: str, spans: list[Span]) -> None:
        """Append spans of a stage; times become microseconds of the machine's monotonic clock."""
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
        """End the array and close the file."""
        if not self._file.closed:
            self._file.write(b"\n]\n")
            self._file.close()

    def _number(self, stage: str) -> int:
        if stage not in self._numbers:
            number = self._numbers[stage] = len(self._numbers) + 1
            self._append(ph="M", name="process_name", pid=number, tid=0, args={"name": stage})
        return self._numbers[stage]

    def _append(self, **event: Any) -> None:
        self._file.write((b"\n" if self._first else b",\n") + msgspec.json.encode(event))
        self._first = False
