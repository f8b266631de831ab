"""The files of one job: requests, results, errors and the header that binds them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np

from ...configs.decoding import UNDECODABLE
from ...errors import UsageError
from .append_file import AppendFile, write_error
from .errors import InputChanged, JobMismatch
from .header import JobHeader, decode_header, differences, encode_header, header_path
from .index import NO_LINE, REPEATS, IndexBuilder, JobIndex, is_blank
from .line_reader import read_line_at, read_lines
from .request_line import LineFault, RequestLine, parse_line
from .result_lines import EndedLine, read_ended


@dataclass(frozen=True)
class IndexedInput:
    """A file of requests after one pass over it: its index, digest and size."""

    file: BinaryIO
    name: str
    index: JobIndex
    sha256: str
    size_bytes: int
    _lock: Lock = field(default_factory=Lock)

    def request(self, row: int) -> RequestLine:
        """Read the request in a row again, in any thread. Raises InputChanged if another line is there now."""
        with self._lock:
            content = read_line_at(self.file, int(self.index.offsets[row]))
        parsed = parse_line(content)
        if isinstance(parsed, LineFault) or not self.index.is_at(row, parsed):
            where = f"{self.name}, line {self.index.numbers[row]:,}"
            raise InputChanged("changed while it was read", where, "Leave the file as it is until the batch has ended")
        return parsed

    def faults(self) -> Iterator[tuple[int, int, LineFault]]:
        """Yield row, line number and fault of each line that cannot run and was not reported, in order."""
        for row, number, offset in self.index.lines(self.index.open_faults):
            parsed = parse_line(read_line_at(self.file, offset))
            if isinstance(parsed, RequestLine) and self.index.states[row] == REPEATS:
                parsed = self.index.repeat_fault(row, parsed.custom_id)
            if isinstance(parsed, LineFault):
                yield row, number, parsed


def index_input(file: BinaryIO, name: str) -> IndexedInput:
    """Read a file of requests once, from its begin to its end, and return its index."""
    digest, builder = sha256(), IndexBuilder()
    for line in read_lines(file, digest.update):
        if not is_blank(line.content):
            builder.add(line, parse_line(line.content))
    return IndexedInput(file, name, builder.finish(), digest.hexdigest(), file.tell())


class JobStore:
    """Results and errors of a job on disk. A request ends when its line is in one of the two files."""

    def __init__(self, results: Path, errors: Path, header: JobHeader, index: JobIndex) -> None:
        """Open the files of a new job or of one to be resumed, and mark in `index` what has ended.

        Raises JobMismatch if the results are of another job, UsageError if a file cannot be used.
        """
        if results.resolve() == errors.resolve():
            raise UsageError("is the file of results, too", str(errors), "Name another file for errors")
        self._index = index
        self.failed = 0
        """Number of lines that are errors, those of earlier runs included."""
        self.results = AppendFile(results)
        try:
            self.errors = AppendFile(errors)
        except BaseException:
            self.results.close()
            raise
        try:
            self.header = self._bind(header)
            self._mark_ended()
        except BaseException:
            self.close()
            raise

    def end(self, row: int, line: bytes, failed: bool = False) -> None:
        """Append the line of a request that has ended. Raises OutputError; then the request has not ended."""
        (self.errors if failed else self.results).append(line)
        self._index.ended[row] = True
        self.failed += failed

    def sync(self) -> None:
        """Make all lines survive a crash of the machine. Raises OutputError."""
        self.results.sync()
        self.errors.sync()

    def close(self) -> None:
        """Sync and close both files."""
        try:
            self.results.close()
        finally:
            self.errors.close()

    def _bind(self, header: JobHeader) -> JobHeader:
        """Return the header of the job to resume, or write that of a new one."""
        path = header_path(self.results.path)
        stored = _read_header(path)
        if stored is None:
            if self.results.size_bytes or self.errors.size_bytes:
                file = self.results.path if self.results.size_bytes else self.errors.path
                remedy = "Name another file, or remove this one"
                raise JobMismatch(f"has lines already, and no {path.name} says of which job", str(file), remedy)
            _write_header(path, header)
            return header
        if differ := differences(header, stored):
            remedy = f"Name another file for the results, or remove {path} and the files of results and errors"
            raise JobMismatch(f"is of another job: {', '.join(differ)} differs", str(self.results.path), remedy)
        return stored

    def _mark_ended(self) -> None:
        for path in (self.results.path, self.errors.path):
            with path.open("rb") as file:
                for number, ended in enumerate(read_ended(file, str(path)), 1):
                    self._mark(ended, f"{path}, line {number:,}")
                    self.failed += path == self.errors.path

    def _mark(self, ended: EndedLine, where: str) -> None:
        """Mark the row of a line as ended. Raises JobMismatch if the job has no such request, or if it ended twice."""
        row = row_of(self._index, ended)
        if row == NO_LINE or self._index.ended[row]:
            reason = "is of no request of this job" if row == NO_LINE else "is of a request that has a line already"
            raise JobMismatch(reason, where, "Remove the line, or name another file for the results")
        self._index.ended[row] = True


def row_of(index: JobIndex, ended: EndedLine) -> int:
    """Return the row that a line of results or errors belongs to; `NO_LINE` if there is none."""
    if ended.line is not None:
        return index.row_of_line(ended.line)
    return NO_LINE if ended.custom_id is None else index.row_of(ended.custom_id)


def sort_results(path: Path, index: JobIndex) -> None:
    """Put the lines of a file of results or errors into the order of the requests.

    Needs room for a second copy, which replaces the file at once. Raises OutputError; the file is then as before.
    """
    partial = path.with_name(f"{path.name}.sorting")
    with path.open("rb") as source:
        rows = np.array([row_of(index, ended) for ended in read_ended(source, str(path))], dtype=np.int64)
        starts = _line_starts(source)
        if (np.diff(rows) >= 0).all():
            return
        try:
            _copy_lines(source, starts[np.argsort(rows, kind="stable")], partial)
            partial.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise write_error(error, partial) from error


def sync_folder(folder: Path) -> None:
    """Make new names in a folder survive a crash. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _line_starts(file: BinaryIO) -> np.ndarray:
    """Return int64 [lines]: offset of each line."""
    file.seek(0)
    lengths = np.array([len(line) for line in file], dtype=np.int64)
    return np.cumsum(lengths) - lengths


def _copy_lines(source: BinaryIO, starts: np.ndarray, target: Path) -> None:
    with target.open("wb") as copy:
        for start in starts.tolist():
            source.seek(start)
            copy.write(source.readline())
        copy.flush()
        os.fsync(copy.fileno())


def _read_header(path: Path) -> JobHeader | None:
    """Return the header in a file, None if there is no file. Raises JobMismatch if it holds something else."""
    try:
        return decode_header(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, *UNDECODABLE) as error:
        remedy = "Name another file for the results, or remove this one if nothing is to be resumed"
        raise JobMismatch(f"is no header of a batch ({error})", str(path), remedy) from error


def _write_header(path: Path, header: JobHeader) -> None:
    """Write the header as a whole or not at all, and make it survive a crash. Raises OutputError."""
    partial = path.with_name(f"{path.name}.new")
    try:
        with partial.open("wb") as file:
            file.write(encode_header(header))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise write_error(error, path) from error
