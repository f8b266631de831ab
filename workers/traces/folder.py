"""The folder of a trace: a file for every start of compute and of the predictor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from ...errors import UsageError
from .records import TracedPlan, TracedStep, TraceHeader, TraceRecord
from .stream import REMEDY, read_records


def claim_folder(folder: str) -> None:
    """Create the folder of a new trace. Raises UsageError if it cannot be written, or already holds a trace."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        holds_trace = bool(trace_files(Path(folder), "*"))
    except OSError as error:
        raise UsageError(f"cannot be made: {error.strerror}", folder, "Give another folder for the trace") from error
    if holds_trace:
        raise UsageError("holds a trace already", folder, "Give another folder for the trace, or remove this one")


def trace_files(folder: Path, stage: str) -> list[Path]:
    """Return the files of a stage (`compute`, `predictor`, or `*`), in the order of its starts."""
    stages = ("compute", "predictor") if stage == "*" else (stage,)
    files = [file for name in stages for file in folder.glob(f"{name}.*.msgpack") if _epoch(file) is not None]
    return sorted(files, key=lambda file: _epoch(file) or 0)


def read_header(folder: Path) -> TraceHeader:
    """Return the header of the first file of compute.

    Raises UsageError if there is no trace, or if files are of different models.
    """
    headers = [header for file in trace_files(folder, "*") for header in _header_of(file)]
    of_compute = [header for header in headers if header.stage == "compute"]
    if not of_compute:
        raise UsageError("holds no trace", str(folder), REMEDY)
    for header in headers:
        if _model(header) != _model(of_compute[0]):
            what = f"holds traces of different models ({header.model} and {of_compute[0].model})"
            raise UsageError(what, str(folder), "Put each in a folder of its own")
    return of_compute[0]


def read_steps(folder: Path) -> Iterator[TracedStep]:
    """Yield the recorded steps in the order in which they ran. Raises UsageError as `read_records` does."""
    for file in trace_files(folder, "compute"):
        yield from (record for record in read_records(file) if isinstance(record, TracedStep))


def read_plans(folder: Path) -> Iterator[TracedPlan]:
    """Yield the recorded plans in the order in which they were sent. Raises UsageError as `read_records` does."""
    for file in trace_files(folder, "predictor"):
        yield from (record for record in read_records(file) if isinstance(record, TracedPlan))


def _header_of(file: Path) -> Iterator[TraceHeader]:
    """Yield the header of a file; nothing if the file was just created."""
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
