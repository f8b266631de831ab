"""Lines of a file, read one at a time with their numbers and offsets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

MAX_LINE_BYTES = 64 << 20
"""Longer lines are not held in memory. It leaves room for a request with several images."""
CHUNK_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line of a file: its number from 1, the offset of its first byte, and its bytes without the line's end.

    `content` is None for a line of more than `MAX_LINE_BYTES`.
    """

    number: int
    offset: int
    content: bytes | None


def read_lines(
    file: BinaryIO, on_bytes: Callable[[bytes], object] = lambda _: None, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[Line]:
    """Yield the lines from the file's position, which is its begin, to its end. The last one may lack its end.

    `on_bytes` is called with all bytes of the file in order, for a digest.
    """
    number, offset = 0, 0
    while first := file.readline(max_bytes + 1):
        on_bytes(first)
        number += 1
        length = len(first)
        if not first.endswith(b"\n") and length > max_bytes:
            length += _skip_line(file, on_bytes)
            yield Line(number, offset, None)
        else:
            yield Line(number, offset, strip_line(first, offset))
        offset += length


def read_line_at(file: BinaryIO, offset: int, max_bytes: int = MAX_LINE_BYTES) -> bytes | None:
    """Return the line that begins at `offset`, without its end; None for a line of more than `max_bytes`."""
    file.seek(offset)
    line = file.readline(max_bytes + 1)
    return strip_line(line, offset) if line.endswith(b"\n") or len(line) <= max_bytes else None


def strip_line(line: bytes, offset: int) -> bytes:
    """Return a line without its end, and without a byte order mark if it is the file's first."""
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    return line if offset else line.removeprefix(BYTE_ORDER_MARK)


def _skip_line(file: BinaryIO, on_bytes: Callable[[bytes], object]) -> int:
    """Read to the end of the line; return the number of bytes read."""
    count = 0
    while part := file.readline(CHUNK_BYTES):
        on_bytes(part)
        count += len(part)
        if part.endswith(b"\n"):
            break
    return count
