"""Files of arrays as `numpy.savez` writes them, read from anybody's hands."""

from __future__ import annotations

import zlib
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np

from ...errors import UsageError

_BROKEN = (ValueError, TypeError, EOFError, BadZipFile, zlib.error, NotImplementedError, RuntimeError, MemoryError)
"""What numpy and the zip library raise for what is broken, encrypted, compressed otherwise, or of absurd sizes."""


def read_arrays(file: Path, name: str, remedy: str) -> dict[str, np.ndarray]:
    """All arrays of an npz file, objects refused. Raises UsageError: the file cannot be read as `name`."""
    try:
        with file.open("rb") as source:
            if not is_zipfile(source):
                raise ValueError("it is no npz file")
            source.seek(0)
            with np.load(source, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
    except OSError as error:
        raise UsageError(f"cannot be read as {name} ({error.strerror or error})", str(file), remedy) from error
    except _BROKEN as error:
        raise UsageError(f"cannot be read as {name} ({error})", str(file), remedy) from error
