"""Kernel tables in the user's cache: one file for every machine, torch, number of threads and set of shapes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from ...configs.checks import KERNELS
from ...configs.decoding import UNDECODABLE
from ...configs.user_cache import cache_folder
from ...errors import UsageError
from .table import ROW_STEPS, KernelTable

LOCK = "kernels.lock"


def table_file(machine: dict[str, str], keys: Iterable[str]) -> Path:
    """Return the file of a table, which may not exist. Raises RuntimeError for a user without a home."""
    text = msgspec.json.encode([machine, sorted(keys)])
    return cache_folder() / f"kernels-{hashlib.sha256(text).hexdigest()[:16]}.json"


def read_cached(file: Path, machine: dict[str, str], keys: Iterable[str]) -> KernelTable | None:
    """Return the table of a file; None if there is none of this machine and these shapes, or if it is corrupt."""
    try:
        table = msgspec.json.decode(file.read_bytes(), type=KernelTable)
    except (OSError, *UNDECODABLE):
        return None
    return table if table.machine == machine and set(table.choices) <= set(keys) and not _fault_of(table) else None


def read_table(file: Path) -> KernelTable:
    """Return the table of a file that a user names. Raises UsageError if there is no valid one."""
    remedy = "Write one with `expertflow doctor --model MODEL --save FILE`"
    try:
        table = msgspec.json.decode(file.read_bytes(), type=KernelTable)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", f"kernels = {file}", remedy) from error
    except UNDECODABLE as error:
        raise UsageError(f"is no kernel table: {error}", f"kernels = {file}", remedy) from error
    if fault := _fault_of(table):
        raise UsageError(f"is no kernel table: {fault}", f"kernels = {file}", remedy)
    return table


def write_table(file: Path, table: KernelTable) -> None:
    """Write a table whole or not at all. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(msgspec.json.format(msgspec.json.encode(table), indent=1))
        os.replace(name, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


@contextmanager
def table_lock(folder: Path) -> Iterator[None]:
    """Let one process measure at a time: two would disturb each other. Without a writable folder there is no lock."""
    descriptor = -1
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _fault_of(table: KernelTable) -> str:
    """Return what is wrong with the choices of a table; empty: nothing."""
    for key, choices in table.choices.items():
        if len(choices) != len(ROW_STEPS):
            return f"'{key}' has {len(choices)} choices, not {len(ROW_STEPS)}"
        if unknown := set(choices) - set(KERNELS):
            return f"'{key}' names the kernel '{min(unknown)}', which does not exist"
    return ""
