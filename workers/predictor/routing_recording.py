"""Reads the routing that an earlier run recorded: `StepRouting` messages in MessagePack, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgpack
import msgspec

from ...errors import UsageError
from ...ipc.messages import StepRouting
from ..traces.message_stream import reason_of


def read_recording(path: str | Path) -> Iterator[StepRouting]:
    """All messages of a file, or of the `routes.EPOCH.msgpack` files of a folder by epoch. A torn tail is left out.

    Raises UsageError at once if there is nothing to read, while reading if something else than `StepRouting` comes.
    """
    files = _files(Path(path))
    return (used for file in files for used in _read_file(file))


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("routes.*.msgpack"), key=_epoch) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UsageError("no recording there", str(path), "Record a run first (record=FOLDER) and give that folder")
    return files


def _epoch(file: Path) -> tuple[int, str]:
    number = file.name.split(".")[1]
    return (int(number) if number.isdecimal() else -1), file.name


def _read_file(file: Path) -> Iterator[StepRouting]:
    decoder = msgspec.msgpack.Decoder(StepRouting)
    try:
        for raw in _split(file.read_bytes()):
            yield decoder.decode(raw)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", str(file), "Check its permissions") from error
    except (msgspec.DecodeError, msgpack.UnpackException, ValueError) as error:
        remedy = "Give the folder of a recorded run, or one of its routes files"
        raise UsageError(f"is not a recording of routing ({reason_of(error)})", str(file), remedy) from error


def _split(stream: bytes) -> Iterator[bytes]:
    """The single messages; what is cut off at the end is left out."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(stream)
    start = 0
    while start < len(stream):
        try:
            unpacker.skip()
        except msgpack.OutOfData:
            return
        end = unpacker.tell()
        yield stream[start:end]
        start = end
