"""The folder of a copy under way: one run at a time, and what an earlier run left is used or removed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import UsageError

STATE = "quantise.json"


@contextmanager
def unfinished_folder(folder: Path, made_from: dict[str, Any]) -> Iterator[None]:
    """Make `folder`, or go on in it if it was made from the same; hold it alone until the end.

    Raises UsageError if another run holds it, or if it holds what no run has left.
    """
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _hold(descriptor, folder)
        _begin(folder, json.loads(json.dumps(made_from)))
        yield
    finally:
        os.close(descriptor)


def _hold(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:  # any other: a file system without locks
            what = "is being written by another run"
            raise UsageError(what, str(folder), "Wait for its end, or name another destination") from error


def _begin(folder: Path, state: dict[str, Any]) -> None:
    file = folder / STATE
    if file.exists() and _read(file) == state:
        return
    if not file.exists() and any(folder.iterdir()):
        what = "is in the way, and was not left by an unfinished quantisation"
        raise UsageError(what, str(folder), "Remove it")
    for left in sorted(folder.iterdir(), key=lambda each: each.name == STATE):  # last, so that a kill leaves it known
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()
    file.write_text(json.dumps(state))


def _read(file: Path) -> object:
    """Return the state; None for one whose writing was broken off."""
    try:
        return json.loads(file.read_bytes())
    except ValueError:
        return None
