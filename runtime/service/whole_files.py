"""Write files that are whole or not there, for programs and people that read them at any moment."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ...errors import UsageError

MAX_PREFIX = 100
"""Letters of a file's name in that of its unfinished copy: names end at 255 bytes."""


def write_whole_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file at once, readable by its owner alone. Raises UsageError; nothing unfinished stays."""
    require_place(path)
    try:
        _write(path, content)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", str(path), "Name another file") from error


def require_place(path: Path) -> None:
    """Raise UsageError if a file at `path` cannot be made: something else is there, or its folder is not writable."""
    require_file(path)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        what = "no right to write in its folder" if path.parent.is_dir() else "it is in no folder"
        raise UsageError(f"cannot be written: {what}", str(path), "Name a file in a folder that you can write")


def require_file(path: Path) -> None:
    """Raise UsageError if something other than a file is at `path`, such as a device: it would be replaced."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError("cannot be written: there is something that is no file", str(path), "Name a new file")


def _write(path: Path, content: bytes | memoryview) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:MAX_PREFIX]}.", delete=False) as file:
        try:
            file.write(content)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
