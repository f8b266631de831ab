"""Reads files of MessagePack messages one after the other: traces, recordings and logs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgspec

from ...errors import UsageError

MAX_ENTRIES = 1 << 24
"""Longest list or map that is read. No message has more; a broken length must not make the reader reserve memory."""


OLD_TAGS = {"Used": "StepRouting", "Forget": "DropUnit"}
"""`type` of recorded messages before they were renamed -> today's, so that older recordings stay readable."""


def read_packed(file: Path, cls: Any, name: str, remedy: str) -> Iterator[Any]:
    """Yield the messages of a file, converted to `cls`. A message that is cut off at the end is left out.

    Raises UsageError with the number of the message that is no `cls`: the file is no `name` then.
    """
    try:
        with file.open("rb") as stream:
            yield from _convert(stream, cls)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", str(file), remedy) from error
    except (msgspec.ValidationError, msgpack.UnpackException, ValueError, TypeError) as error:
        raise UsageError(f"is no {name} ({reason_of(error)})", str(file), remedy) from error


def reason_of(error: Exception) -> str:
    """Say in words why MessagePack cannot be read; for some errors the library gives the class name only."""
    if isinstance(error, msgpack.FormatError):
        return "its bytes are no MessagePack"
    if isinstance(error, msgpack.StackError):
        return "it is nested too deeply"
    return str(error) or type(error).__name__


def _convert(stream: Any, cls: Any) -> Iterator[Any]:
    limits = {"max_buffer_size": 0, "max_array_len": MAX_ENTRIES, "max_map_len": MAX_ENTRIES}
    for number, message in enumerate(msgpack.Unpacker(stream, strict_map_key=False, **limits), 1):
        if isinstance(message, dict) and message.get("type") in OLD_TAGS:
            message["type"] = OLD_TAGS[message["type"]]
        try:
            converted = msgspec.convert(message, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"message {number}: {error}") from error
        yield converted
