"""The folder of a trace: a file for every start of compute and of the predictor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from ...errors import UsageError
from .records import TracedPlan, TracedStep, TraceHeader, TraceRecord
from .stream import REMEDY, read_records


def claim_folder(folder: str) -> None:
    """Make it if needed. Raises UsageError if it cannot be written, or holds a trace: two would get mixed."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        holds_trace = bool(trace_files(Path(folder), "*"))
    except OSError as error:
        raise UsageError(f"cannot be made: {error.strerror}", folder, "Give another folder for the trace") from error
    if holds_trace:
        raise UsageError("holds a trace already", folder, "Give another folder for the trace, or remove this one")


def trace_files(folder: Path, stage: str) -> list[Path]:
    """Files of a stage (`compute`, `predictor`, or `*`), in the order of its starts."""
    stages = ("compute", "predictor") if stage == "*" else (stage,)
    found = [file for each in stages for file in folder.glob(f"{each}.*.msgpack") if _epoch(file) is not None]
    return sorted(found, key=lambda file: _epoch(file) or 0)


def read_header(folder: Path) -> TraceHeader:
    """What all files agree on, as the first file of compute says it.

    Raises UsageError if there is no trace, or files are of different models.
    """
    headers = [header for file in trace_files(folder, "*") for header in _header_of(file)]
    ours = [header for header in headers if header.stage == "compute"]
    if not ours:
        raise UsageError("holds no trace", str(folder), REMEDY)
    for header in headers:
        if _model(header) != _model(ours[0]):
            what = f"holds traces of different models ({header.model} and {ours[0].model})"
            raise UsageError(what, str(folder), "Put each in a folder of its own")
    return ours[0]


def read_steps(folder: Path) -> Iterator[TracedStep]:
    """Steps in the order they ran."""
    for file in trace_files(folder, "compute"):
        yield from (record for record in read_records(file) if isinstance(record, TracedStep))


def read_plans(folder: Path) -> Iterator[TracedPlan]:
    """Plans in the order they were sent."""
    for file in trace_files(folder, "predictor"):
        yield from (record for record in read_records(file) if isinstance(record, TracedPlan))


def _header_of(file: Path) -> Iterator[TraceHeader]:
    """None yet in a file that was just begun."""
    first: TraceRecord | None = next(read_records(file), None)
    if isinstance(first, TraceHeader):
        yield first
    elif first is not None:
        raise UsageError("does not begin with the header of a trace", str(file), REMEDY)


def _epoch(file: Path) -> int | None:
    number = file.name.split(".")[1]
    return int(number) if number.isdecimal() else None


def _model(header: TraceHeader) -> TraceHeader:
    return msgspec.structs.replace(header, stage="", epoch=0, slots=0, model="")
