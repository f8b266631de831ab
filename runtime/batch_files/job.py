"""A job as a whole: requests from a file or stdin; results to a file with errors and header beside it, or to stdout."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ...errors import UsageError
from .append_file import LineOutput, StreamOutput, write_error
from .header import JobHeader, Option
from .index import JobIndex
from .model_digest import model_digest
from .store import IndexedInput, JobStore, index_input, sort_results

STREAM = Path("-")


@dataclass(frozen=True)
class JobFiles:
    """Paths of a job; `STREAM` stands for stdin and stdout."""

    requests: Path
    results: Path
    errors: Path

    @staticmethod
    def of(requests: Path, results: Path, errors: Path | None) -> JobFiles:
        """Return the paths; by default errors are beside the results, and on stdout if results are.

        Raises UsageError if a file would be read and written.
        """
        if errors is None:
            errors = STREAM if results == STREAM else results.with_name(f"{results.stem}.errors{results.suffix}")
        for path in (results, errors):
            if path != STREAM and path.exists() and requests.exists() and path.samefile(requests):
                raise UsageError("is the file of requests, too", str(path), "Name another file for the results")
        if (results == STREAM) != (errors == STREAM):
            remedy = "Name files for both, or give - for the results"
            raise UsageError("is for results and errors together", "-", remedy)
        return JobFiles(requests, results, errors)


class StreamEnding:
    """Ends rows on a stream: results and errors in one, as they come. Nothing can be resumed."""

    def __init__(self, output: LineOutput, index: JobIndex) -> None:
        self._output, self._index = output, index
        self.failed = 0
        """Number of lines that are errors."""

    def end(self, row: int, line: bytes, failed: bool = False) -> None:
        """Write the line. Raises OutputError."""
        self._output.append(line)
        self._index.ended[row] = True
        self.failed += failed

    def sync(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing: the stream is not this object's."""


class JobModel(NamedTuple):
    """The model of a job: its folder, its name in results, and its revision on the hub (empty: none was named)."""

    folder: Path
    name: str
    revision: str = ""


@dataclass(frozen=True)
class Job:
    """An open job: where its lines end, and what makes the ids of its results."""

    ending: JobStore | StreamEnding
    name: str
    created: int


@contextmanager
def open_input(path: Path) -> Iterator[IndexedInput]:
    """Yield the index of a file of requests, read once. What cannot be read twice is copied to a temporary file first.

    Raises UsageError if it cannot be read, OutputError if the copy does not fit the disk.
    """
    name = "stdin" if path == STREAM else str(path)
    try:
        file = sys.stdin.buffer if path == STREAM else path.open("rb")
    except OSError as error:
        remedy = "Name a file with a request a line, or - for stdin"
        raise UsageError(f"cannot be read: {error.strerror}", name, remedy) from error
    with file if path != STREAM else _nothing():
        if path != STREAM and stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            yield index_input(file, name)
        else:
            with _copied(file) as copy:
                yield index_input(copy, name)


@contextmanager
def open_job(files: JobFiles, given: IndexedInput, model: JobModel, options: dict[str, Option]) -> Iterator[Job]:
    """Yield the job, new or resumed; its files are synced and closed at the end. Raises what `JobStore` raises."""
    if files.results == STREAM:
        yield Job(StreamEnding(StreamOutput(sys.stdout.fileno(), "stdout"), given.index), _name(given), _created(given))
        return
    header = JobHeader(
        input_sha256=given.sha256,
        input_bytes=given.size_bytes,
        lines=len(given.index),
        model=model.name,
        revision=model.revision,
        model_digest=model_digest(model.folder),
        options={**options, "errors": files.errors.name},
        created=_created(given),
    )
    store = JobStore(files.results, files.errors, header, given.index)
    try:
        yield Job(store, _name(given), store.header.created)
    finally:
        store.close()


def sort_files(files: JobFiles, index: JobIndex) -> None:
    """Put results and errors into the order of the requests. Raises OutputError."""
    for path in (files.results, files.errors):
        sort_results(path, index)


def _name(given: IndexedInput) -> str:
    """Return the name of the job: the same wherever and whenever it runs."""
    return given.sha256[:16]


def _created(given: IndexedInput) -> int:
    """Return when the requests were last changed, so that two runs of one file give the same lines."""
    return int(os.fstat(given.file.fileno()).st_mtime if given.name != "stdin" else time.time())


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _copied(file: BinaryIO) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile(prefix="expertflow-batch-") as copy:
        try:
            shutil.copyfileobj(file, copy)
            copy.flush()
        except OSError as error:
            raise write_error(error, Path(tempfile.gettempdir())) from error
        copy.seek(0)
        yield copy
