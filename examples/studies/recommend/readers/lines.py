"""Lines of text files, plain or gzipped, cut into fields, with their numbers."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .rows import BadRows, DataError


def open_text(file: Path, encoding: str = "utf-8", newline: str | None = None) -> IO[str]:
    """Open a text file, gzipped if its name ends in .gz. Raises DataError if it is not there."""
    try:
        if file.suffix == ".gz":
            return gzip.open(file, "rt", encoding=encoding, newline=newline)
        return open(file, encoding=encoding, newline=newline)
    except OSError as error:
        raise DataError(f"cannot be opened ({error.strerror})", str(file), "Name a whole data set") from error


def read_lines(file: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Yield number, from 1, and text of every line that is not empty.

    Raises DataError for a file that is not there, not gzipped as its name says, or not in this encoding.
    """
    with open_text(file, encoding) as stream:
        for number, line in enumerate(_guarded(file, encoding, stream), 1):
            if text := line.rstrip("\r\n"):
                yield number, text


def read_table(file: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[int, list[str]]]:
    """Yield line and cells of every row of a CSV file that is not empty; quotes may hold commas and line ends.

    Raises DataError as `read_lines`, and for a file that is no CSV.
    """
    with open_text(file, encoding, newline="") as stream:
        reader = csv.reader(_guarded(file, encoding, stream))
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            where = f"{file}:{reader.line_num}"
            raise DataError(f"cannot be read as CSV: {error}", where, "Download it again") from error


def _guarded(file: Path, encoding: str, stream: IO[str]) -> Iterator[str]:
    """Yield the lines of a stream. Raises DataError where it cannot be read."""
    number = 0
    try:
        for line in stream:
            number += 1
            yield line
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot be read as {encoding}: {error}", f"{file}:{number + 1}", "Download it again"
        ) from error


def read_fields(
    file: Path, separator: str, count: int, bad: BadRows, encoding: str = "utf-8"
) -> Iterator[tuple[int, list[str]]]:
    """Yield line and its `count` fields. Raises DataError for a line with fewer or more, unless they are skipped."""
    for line, text in read_lines(file, encoding):
        cells = text.split(separator)
        if len(cells) == count:
            yield line, cells
        else:
            bad.report(file, line, f"has {len(cells)} fields, not {count}", text)
