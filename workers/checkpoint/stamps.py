"""Detects that a checkpoint's files have changed since the survey: two sets of weights would mix silently."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from ...errors import CheckpointError

REMEDY = "Results would mix two sets of weights. Leave a model's files alone while it runs, and start the engine again"
CUT_OFF_REMEDY = "Download the file again, then start the engine again"


class FileStamp(msgspec.Struct, frozen=True, array_like=True):
    """Size, time and inode of a file at the moment of the survey, from `stat`."""

    size_bytes: int
    mtime_ns: int
    inode: int

    @staticmethod
    def of(stat: os.stat_result) -> FileStamp:
        return FileStamp(stat.st_size, stat.st_mtime_ns, stat.st_ino)


def stamp_files(files: Iterable[Path]) -> dict[str, FileStamp]:
    """Return the stamp of each file by its path. Raises OSError if one cannot be read."""
    return {str(file): FileStamp.of(os.stat(file)) for file in files}


def check_files(stamps: Mapping[str, FileStamp]) -> None:
    """Compare every file with its stamp by path, as a process does that opens it now.

    Raises CheckpointError for one that is gone, was replaced, overwritten or cut off.
    """
    for path, stamp in stamps.items():
        try:
            now = os.stat(path)
        except OSError as error:
            raise CheckpointError(f"is gone since it was surveyed ({error.strerror})", path, REMEDY) from error
        check_stamp(path, stamp, now)


def check_stamp(path: str, stamp: FileStamp, stat: os.stat_result) -> None:
    """Compare a file with its stamp. Raises CheckpointError that names the file and what differs."""
    now = FileStamp.of(stat)
    if now == stamp:
        return
    if now.size_bytes < stamp.size_bytes:
        what = f"was cut off: it has {now.size_bytes:,} bytes, and had {stamp.size_bytes:,} when it was surveyed"
        raise CheckpointError(what, path, CUT_OFF_REMEDY)
    raise CheckpointError(f"{_change(stamp, now)} since it was surveyed", path, REMEDY)


def _change(stamp: FileStamp, now: FileStamp) -> str:
    if now.inode != stamp.inode:
        return "was replaced by another file"
    if now.size_bytes != stamp.size_bytes:
        return f"has grown from {stamp.size_bytes:,} to {now.size_bytes:,} bytes"
    return "was overwritten"


class OpenFiles:
    """Surveyed files, held open: a running process that has mapped their pages checks them by descriptor.

    A file that was replaced under its name is unchanged for this process; one that was written to is not.
    """

    def __init__(self, stamps: Mapping[str, FileStamp]) -> None:
        """Open all files. Raises CheckpointError if a file differs from its stamp already."""
        self._stamps = stamps
        self._descriptors: dict[str, int] = {}
        check_files(stamps)
        try:
            for path in stamps:
                self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.close()
            raise CheckpointError(f"cannot be opened ({error.strerror})", str(error.filename), REMEDY) from error
        self.check()

    def check(self) -> None:
        """Check all files, in about a microsecond each. Raises CheckpointError if one was overwritten or cut off."""
        for path, descriptor in self._descriptors.items():
            check_stamp(path, self._stamps[path], os.fstat(descriptor))

    def close(self) -> None:
        """Close all descriptors; a second call does nothing."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
