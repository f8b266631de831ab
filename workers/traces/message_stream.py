"""Files of MessagePack messages one after the other, as traces and logs are: read with the place of what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgspec

from ...errors import UsageError

MAX_ENTRIES = 1 << 24
"""Of a list or map: no message of ours has more, and room for what a broken length promises is not taken."""


def read_packed(file: Path, kind: Any, name: str, remedy: str) -> Iterator[Any]:
    """The messages of a file, as `kind`s. What is cut off at the end is left out; it may still be growing.

    Raises UsageError with the number of the message that is none: the file is no `name` then.
    """
    try:
        with file.open("rb") as stream:
            yield from _converted(stream, kind)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", str(file), remedy) from error
    except (msgspec.ValidationError, msgpack.UnpackException, ValueError, TypeError) as error:
        raise UsageError(f"is no {name} ({reason_of(error)})", str(file), remedy) from error


def reason_of(error: Exception) -> str:
    """Why MessagePack cannot be read, in words: the library says only what it is called of some errors."""
    if isinstance(error, msgpack.FormatError):
        return "its bytes are no MessagePack"
    if isinstance(error, msgpack.StackError):
        return "it is nested too deeply"
    return str(error) or type(error).__name__


def _converted(stream: Any, kind: Any) -> Iterator[Any]:
    limits = {"max_buffer_size": 0, "max_array_len": MAX_ENTRIES, "max_map_len": MAX_ENTRIES}
    for number, message in enumerate(msgpack.Unpacker(stream, strict_map_key=False, **limits), 1):
        try:
            converted = msgspec.convert(message, kind)
        except msgspec.ValidationError as error:
            raise ValueError(f"message {number}: {error}") from error
        yield converted
