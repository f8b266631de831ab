"""The private directory of one engine with its sockets and small files; the engine or the next start removes it."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from ...errors import UsageError

ENGINES = "engines"
"""Folder of the engines' run directories in the run directory of their group."""
_PREFIX = "expertflow-"
_UNLOCKED_PREFIX = ".expertflow-"
_UNLOCKED_SECONDS = 60.0
_MODE = 0o700
_SOCKET_PATH_BYTES = 107
"""Capacity of `sun_path` without its final zero."""
_LONGEST_SOCKET_NAME = "predictor.999999-scheduler.999999"


class RunDir:
    """A directory (mode 0700), locked while its owner lives: the lock is on the directory and ends with the process."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd = lock_fd

    @classmethod
    def create(cls, base: Path | None = None) -> RunDir:
        """Sweep what dead engines left in `base`, then make a directory there.

        `base` defaults to $XDG_RUNTIME_DIR or /tmp. Raises UsageError if socket paths in it would be too long or if it
        cannot be written.
        """
        base = base or _default_base()
        _check_length(base, len(os.fsencode(base)) + len(f"/{_PREFIX}xxxxxxxx"), _REMEDY)
        sweep(base)
        try:
            unlocked = Path(tempfile.mkdtemp(prefix=_UNLOCKED_PREFIX, dir=base))
        except OSError as error:
            raise UsageError(f"cannot make a run directory: {error.strerror}", str(base), _REMEDY) from error
        lock_fd = os.open(unlocked, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        # A sweep only checks this name, so the directory gets it after its lock.
        path = base / unlocked.name.removeprefix(".")
        unlocked.rename(path)
        return cls(path, lock_fd)

    @classmethod
    def at(cls, path: Path) -> RunDir:
        """Make the directory at this path, in place of what a dead engine has left there.

        Raises UsageError if an engine runs there, if anything else is there, or if the path is too long.
        """
        path = Path(os.path.abspath(path))
        _check_length(path, len(os.fsencode(path)), "Give a shorter path")
        while True:
            _make_private(path)
            lock_fd = _lock_private(path)
            if _is_there(lock_fd, path):  # else its last owner removed it just now
                break
            os.close(lock_fd)
        _clear(path)
        (path / _MARK).touch(mode=0o600)
        return cls(path, lock_fd)

    def remove_files_of(self, stage: str, epoch: int) -> None:
        """Remove the sockets and the log of a dead start of a stage (a killed process cannot)."""
        for entry in self.path.iterdir():
            if f"{stage}.{epoch}" in entry.name.removesuffix(".log").split("-"):
                entry.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the directory, then release its lock."""
        if self._lock_fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock_fd)
            self._lock_fd = -1


_MARK = ".expertflow"
"""File in a directory at a fixed path: the next start may remove what is there."""
_REMEDY = "Set XDG_RUNTIME_DIR to a short folder that you can write"


def sweep(base: Path) -> None:
    """Remove the run directories whose owner has died; a living owner holds its lock."""
    for path in base.glob(f"{_PREFIX}*"):
        _remove_if_dead(path)
    for path in base.glob(f"{_UNLOCKED_PREFIX}*"):
        if path.exists() and time.time() - path.stat().st_mtime > _UNLOCKED_SECONDS:
            _remove_if_dead(path)


def living(base: Path | None = None) -> list[Path]:
    """Return the run directories of this user's running engines in `base` (default as for `create`)."""
    return sorted(path for path in (base or _default_base()).glob(f"{_PREFIX}*") if _is_living(path))


def is_group(run_dir: Path) -> bool:
    """Return whether a run directory belongs to a group of engines."""
    return (run_dir / ENGINES).is_dir()


def engines_of(run_dir: Path) -> list[Path]:
    """Return the run directories of a group's running engines; `run_dir` itself for a single engine."""
    return living(run_dir / ENGINES) if is_group(run_dir) else [run_dir]


def _is_living(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # not a directory, not ours, or just gone
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # its owner lives
        return os.fstat(fd).st_uid == os.getuid()
    finally:
        os.close(fd)
    return False


def _remove_if_dead(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # not a directory, not ours, or just gone
        return
    try:
        if _is_ours(os.fstat(fd), path):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:  # its owner lives
        return
    finally:
        os.close(fd)


def _is_ours(status: os.stat_result, path: Path) -> bool:
    """Check the mode too: a user's folder (a clone, a recording) with such a name is not touched."""
    private = stat.S_IMODE(status.st_mode) == _MODE or path.name.startswith(_UNLOCKED_PREFIX)
    return private and status.st_uid == os.getuid()


def _default_base() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(runtime) if runtime and os.access(runtime, os.W_OK | os.X_OK) else Path("/tmp")


def _check_length(where: Path, run_dir_bytes: int, remedy: str) -> None:
    longest = run_dir_bytes + len(f"/{_LONGEST_SOCKET_NAME}")
    if longest > _SOCKET_PATH_BYTES:
        what = f"socket paths would be {longest} bytes long, more than the {_SOCKET_PATH_BYTES} the system allows"
        raise UsageError(what, str(where), remedy)


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=_MODE)
    except FileExistsError:
        return
    except OSError as error:
        remedy = "Name a path in a folder that exists and that you can write"
        raise UsageError(f"cannot be made: {error.strerror}", str(path), remedy) from error


def _lock_private(path: Path) -> int:
    """Return the descriptor of the locked directory. Raises UsageError if it is in use, or no engine's."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot be used: {error.strerror}", str(path), _OTHER_PATH) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        names, status = os.listdir(fd), os.fstat(fd)
        if not _is_ours(status, path) or (names and _MARK not in names):
            raise UsageError("is there already, and is no private folder of an engine", str(path), _OTHER_PATH)
    except BlockingIOError as error:
        os.close(fd)
        raise UsageError("has a running engine", str(path), "Stop that one first, or give another path") from error
    except UsageError:
        os.close(fd)
        raise
    return fd


_OTHER_PATH = "Give a path that does not exist, for example in $XDG_RUNTIME_DIR"


def _is_there(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _clear(path: Path) -> None:
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
