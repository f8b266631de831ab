"""The built-in model and its widened copy, which is made once and kept in a cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...configs.sizes import format_size
from ...errors import BudgetError, EngineError, UsageError

FACTOR = 64
_PACKAGE = Path(__file__).parents[2]
_WEIGHTS = {".json", ".npz", ".safetensors"}


def example_file(name: str) -> Path:
    """Return a file or folder of `examples/`, which the package brings along. Raises UsageError if it is missing."""
    path = _PACKAGE / "examples" / name
    if not path.exists():
        remedy = "Install the package again, or name a model of yours with --model and prompts with --prompts"
        raise UsageError("is missing, so the package is not whole", str(path), remedy)
    return path


def widened_copy(source: Path, cache: Path, factor: int = FACTOR) -> Path:
    """Return the widened copy of `source` in `cache`; make it if it is missing, or wait for a process that makes it.

    Raises UsageError or BudgetError if there is no room for it, EngineError if widening failed.
    """
    target = cache / f"widened-{factor}-{_digest(source)}"
    with _lock(cache):
        if not target.is_dir():
            _clear_leftovers(cache)
            _require_room(source, cache, factor)
            _widen(source, target, factor)
    return target


def _digest(source: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(source.iterdir()):
        if file.suffix in _WEIGHTS:
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def _lock(cache: Path) -> Iterator[None]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        file = open(cache / ".lock", "w")  # noqa: SIM115 - closed below
    except OSError as error:
        remedy = "Name another folder with --cache"
        raise UsageError(f"cannot be written: {error.strerror}", str(cache), remedy) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _clear_leftovers(cache: Path) -> None:
    """Remove what an interrupted widening has left: only complete copies have a name without a dot."""
    for path in cache.glob(".widened-*"):
        shutil.rmtree(path, ignore_errors=True)


def _require_room(source: Path, cache: Path, factor: int) -> None:
    needed = factor * sum(file.stat().st_size for file in source.glob("*.safetensors"))
    free = shutil.disk_usage(cache).free
    if needed > free:
        what = f"the widened model takes up to {format_size(needed)}, but only {format_size(free)} are free"
        raise BudgetError(what, str(cache), "Name a folder on another disk with --cache")


def _widen(source: Path, target: Path, factor: int) -> None:
    """Widen in a process of its own, since it imports torch. Its progress goes to our stderr; it ends with us."""
    command = [sys.executable, "-P", "-m", "expertflow.ipc.stage.run_with_parent", str(os.getpid())]
    command += ["expertflow", "widen", str(source), str(target), "--factor", str(factor)]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, process_group=0, check=False)
    if ended.returncode:
        raise EngineError("the model could not be widened", str(target), "See the message above")
