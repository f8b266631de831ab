"""Reader of `numpy.savez` files from untrusted sources."""

from __future__ import annotations

import zlib
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np

from ...errors import UsageError

_READ_ERRORS = (ValueError, TypeError, EOFError, BadZipFile, zlib.error, NotImplementedError, RuntimeError, MemoryError)
"""Errors of numpy and the zip library for files that are broken, encrypted, compressed otherwise, or absurdly large."""


def read_arrays(file: Path, name: str, remedy: str) -> dict[str, np.ndarray]:
    """Return all arrays of an npz file by name, in the shapes and dtypes of the file; pickled objects are refused.

    Raises UsageError if the file cannot be read as `name`.
    """
    try:
        with file.open("rb") as source:
            if not is_zipfile(source):
                raise ValueError("it is no npz file")
            source.seek(0)
            with np.load(source, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
        if other := next((name for name, array in found.items() if not isinstance(array, np.ndarray)), None):
            raise ValueError(f"its member '{other[:80]}' is no array")
        return found
    except OSError as error:
        raise UsageError(f"cannot be read as {name} ({error.strerror or error})", str(file), remedy) from error
    except _READ_ERRORS as error:
        raise UsageError(f"cannot be read as {name} ({error})", str(file), remedy) from error
