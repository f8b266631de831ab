"""Files that scripts read while a command runs: its address, its process id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .whole_files import write_whole_file


@contextmanager
def announced(file: Path | None, text: str) -> Iterator[None]:
    """Keep a line of text in a file until the end; without a file do nothing.

    The line is written at once, so that a reader never sees half of it. A file that another process has replaced
    meanwhile is left to that one. Raises UsageError if it cannot be written.
    """
    if file is None:
        yield
        return
    write_whole_file(file, f"{text}\n".encode())
    try:
        yield
    finally:
        if _read(file) == text + "\n":
            file.unlink(missing_ok=True)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
