"""Files of requests: preprocessed images, in a folder of the engine's run directory.

A client names, writes and removes its own files. It holds a lock while it lives, so that the next client can remove the
files of a dead one. Messages carry only the names.
"""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from pathlib import Path

from ...configs.sizes import format_size
from ...errors import BudgetError, RequestError

FOLDER = "attachments"
TOKEN_TYPES = "mm_token_type_ids"
"""Input beside the model's own: int64 [prompt], 0 text, 1 image. Other inputs of this kind end in the same word."""
_TYPES_END = "token_type_ids"

MAX_BYTES = 2 * 2**30
"""Limit for all files of an engine together."""

_NAME = re.compile(r"[0-9a-f]{32}\.[0-9]{1,12}")
_LOCK = ".lock"


def is_of_positions(name: str) -> bool:
    """Return whether an input has one number for each position of a prompt, rather than data for each image."""
    return name.endswith(_TYPES_END)


def is_attachment_name(name: str) -> bool:
    """Return whether a message may carry `name`: the name of a file, never a path."""
    return _NAME.fullmatch(name) is not None


def attachment_path(folder: Path, name: str) -> Path:
    """Return the path of an attachment. Raises RequestError for a name that no `Attachments` gives."""
    if not is_attachment_name(name):
        raise RequestError(f"'{name[:80]}' is no name of an attachment", "attachment", "Send images through the client")
    return folder / name


class Attachments:
    """The files of one client of the engine at `run_dir`. The folder is made with the first file."""

    def __init__(self, run_dir: Path, max_bytes: int = MAX_BYTES) -> None:
        self._folder, self._max_bytes = run_dir / FOLDER, max_bytes
        self._owner, self._count, self._lock_fd = uuid.uuid4().hex, 0, -1

    def put(self, content: bytes) -> str:
        """Write a file and return its name. Raises BudgetError if it does not fit."""
        self._count += 1
        name = f"{self._owner}.{self._count}"
        try:
            self._open()
            self._require_room(len(content))
            (self._folder / name).write_bytes(content)
        except OSError as error:
            self.remove(name)
            raise BudgetError(f"cannot be written ({error.strerror})", str(self._folder), _FEWER) from error
        return name

    def remove(self, name: str) -> None:
        """Remove a file whose request has ended."""
        (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all files of this client."""
        if self._lock_fd >= 0:
            _remove_files_of(self._folder, self._owner)
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _require_room(self, count_bytes: int) -> None:
        held = sum(_size_of(path) for path in self._folder.iterdir())
        if held + count_bytes > self._max_bytes:
            sizes = f"{format_size(count_bytes)} of images beside {format_size(held)} of other requests'"
            raise BudgetError(f"{sizes} exceed {format_size(self._max_bytes)}", "images", _FEWER)

    def _open(self) -> None:
        if self._lock_fd >= 0:
            return
        self._folder.mkdir(mode=0o700, exist_ok=True)
        _sweep(self._folder)
        self._lock_fd = _open_locked(self._folder / f"{self._owner}{_LOCK}")


_FEWER = "Hand in fewer images at once, or smaller ones"


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # just removed by its owner
        return 0


def _open_locked(file: Path) -> int:
    """Return the descriptor of a locked file; try again if a sweep removes the file before it is locked."""
    while True:
        fd = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if file.exists() and os.path.samestat(os.fstat(fd), file.stat()):
            return fd
        os.close(fd)


def _sweep(folder: Path) -> None:
    for lock in folder.glob(f"*{_LOCK}"):
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:  # just removed by its owner
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_files_of(folder, lock.name.removesuffix(_LOCK))
        except BlockingIOError:  # its owner lives
            pass
        finally:
            os.close(fd)


def _remove_files_of(folder: Path, owner: str) -> None:
    """Remove the lock last: a sweep that finds the lock free finds all files."""
    for path in sorted(folder.glob(f"{owner}.*"), key=lambda path: path.suffix == _LOCK):
        path.unlink(missing_ok=True)
