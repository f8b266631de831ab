"""Reads the routing that an earlier run recorded: files of `StepRouting` messages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import UsageError
from ...ipc.messages import StepRouting
from ..traces.message_stream import read_packed

REMEDY = "Give the folder of a recorded run, or one of its routes files"


def read_recording(path: str | Path) -> Iterator[StepRouting]:
    """Yield all messages of a file, or of the `routes.EPOCH.msgpack` files of a folder by epoch.

    A torn tail is left out. Raises UsageError at once if there is nothing to read, while reading for another message.
    """
    files = _files(Path(path))
    return (routing for file in files for routing in read_packed(file, StepRouting, "recording of routing", REMEDY))


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("routes.*.msgpack"), key=_epoch) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UsageError("no recording there", str(path), "Record a run first (record=FOLDER) and give that folder")
    return files


def _epoch(file: Path) -> tuple[int, str]:
    number = file.name.split(".")[1]
    return (int(number) if number.isdecimal() else -1), file.name
