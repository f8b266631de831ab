"""Files that scripts read while a command runs: its address, its process id."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import UsageError


@contextmanager
def announced(file: Path | None, text: str) -> Iterator[None]:
    """Keep a line of text in a file until the end; without a file do nothing.

    The line is written at once, so that a reader never sees half of it. A file that another process has replaced
    meanwhile is left to that one. Raises UsageError if it cannot be written.
    """
    if file is None:
        yield
        return
    _write_at_once(file, text + "\n")
    try:
        yield
    finally:
        if _read(file) == text + "\n":
            file.unlink(missing_ok=True)


def _write_at_once(file: Path, text: str) -> None:
    try:
        fd, fresh = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        with open(fd, "w", encoding="utf-8") as opened:
            opened.write(text)
        os.replace(fresh, file)
    except OSError as error:
        remedy = "Name a file in a folder of yours"
        raise UsageError(f"cannot be written: {error.strerror}", str(file), remedy) from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
