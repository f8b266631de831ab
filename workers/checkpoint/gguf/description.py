"""A folder that describes a GGUF model as a checkpoint's folder does, made once and kept in the user's cache.

It holds config.json, tokenizer files, chat template and generation_config.json, all by transformers' own rules from the
metadata of the file, and `gguf.json`: the files with the weights, and which stored tensors make up which parameter. It
holds no weights. Everything else reads such a folder like any other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

import msgspec

from ....configs.decoding import UNDECODABLE
from ....configs.user_cache import cache_folder
from ....errors import CheckpointError, UsageError
from ....ipc.messages import ErrorFacts
from .container import read_container
from .model_files import model_files, model_name

FILE = "gguf.json"
ERROR = "error.msgpack"
REFUSED = 2
"""Exit code of the process that describes a model, if it wrote why there is no description."""
FORMAT = 4
"""Raised when descriptions change: older ones are made anew."""
DESCRIBE_SECONDS = 600.0
STALE_SECONDS = 3600.0
_PARTIAL = ".partial-"
_MODULE = "expertflow.workers.surveyor.gguf"


class StoredParameter(msgspec.Struct, frozen=True):
    """Stored tensors that make up a parameter, whose rows follow each other, or alternate.

    `shape`: that of the parameter; files leave axes of one value out, or not. `transposed`: each matrix of the
    parameter is the transpose of the stored one.
    """

    tensors: list[str]
    shape: list[int]
    transposed: bool = False
    alternating: bool = False


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """Content of `gguf.json`."""

    architecture: str
    """As ggml names it."""
    files: list[str]
    stamps: list[tuple[int, int, int]]
    """Size in bytes, time (ns) and inode of each file."""
    parameters: dict[str, StoredParameter]
    """By the name in the model."""
    experts: list[str]
    """Names of those that routed experts have."""
    linears: dict[str, str]
    """Weights of linear layers that are one stored tensor of blocks, value by value, and the type of its blocks."""


def read_description(folder: Path) -> Description | None:
    """Return how a folder describes a GGUF model; None for a folder that describes none."""
    file = folder / FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=Description) if file.is_file() else None
    except UNDECODABLE as error:
        raise CheckpointError(f"cannot be read ({error})", str(file), "Remove its folder: it is made anew") from error


def describe(file: Path) -> Path:
    """Return the folder that describes the model in a GGUF file, or of which the file is a part.

    It is made if there is none yet for these files, in a process of its own, which takes some seconds. Raises
    CheckpointError for a model that cannot be read, UsageError if there is no place for the folder.
    """
    files = [part.resolve() for part in model_files(file.absolute())]
    try:
        kept = _kept_in() / _key(files) / model_name(file)
        if (kept / FILE).is_file():
            return kept
        read_container(files[0])  # a broken header is found here and now, without a process
        return _make(files, kept)
    except OSError as error:
        what = f"cannot be described in the user's cache ({error.strerror or error})"
        raise UsageError(what, str(file), "Set XDG_CACHE_HOME to a folder that can be written to") from error


def stamps_of(files: list[Path]) -> list[tuple[int, int, int]]:
    """Return size, time and inode of each file. Raises OSError if one cannot be read."""
    stats = [os.stat(file) for file in files]
    return [(stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats]


def _kept_in() -> Path:
    try:
        return cache_folder() / "gguf"
    except RuntimeError as error:
        raise UsageError("this user has no home folder", "XDG_CACHE_HOME", "Set it to a folder") from error


def _key(files: list[Path]) -> str:
    facts = repr((FORMAT, version("transformers"), [str(file) for file in files], stamps_of(files)))
    return blake2b(facts.encode(), digest_size=8).hexdigest()


def _make(files: list[Path], target: Path) -> Path:
    """Make a description beside the others, then move it to its place at once."""
    root = target.parent.parent
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=root) as partial:
        made = Path(partial, "made", target.name)
        made.mkdir(parents=True)
        _run(files, made)
        try:
            made.parent.rename(target.parent)
        except OSError:
            if not (target / FILE).is_file():  # else another process was faster
                raise
    return target


def _run(files: list[Path], target: Path) -> None:
    command = [sys.executable, "-P", "-m", "expertflow.ipc.stage.run_with_parent", str(os.getpid()), _MODULE]
    command += [os.fspath(target), *map(os.fspath, files)]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            process_group=0,
            timeout=DESCRIBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        what = f"was not described within {DESCRIBE_SECONDS:g} s"
        raise CheckpointError(what, str(files[0]), "Try again when the machine is less busy") from error
    if ended.returncode == REFUSED and (target / ERROR).is_file():
        raise msgspec.msgpack.decode((target / ERROR).read_bytes(), type=ErrorFacts).to_error()
    if ended.returncode:
        last = (ended.stderr.decode("utf-8", "replace").strip().splitlines() or [""])[-1]
        what = f"cannot be described: the process that reads it ended with {ended.returncode} ({last[:200]})"
        raise CheckpointError(what, str(files[0]), "Try again; report it if that does not help")


def _sweep(root: Path) -> None:
    """Remove descriptions of files that are gone or changed, and what a killed process left behind."""
    for folder in _stale(root):
        shutil.rmtree(folder, ignore_errors=True)


def _stale(root: Path) -> Iterator[Path]:
    for folder in root.iterdir():
        if folder.name.startswith(_PARTIAL):
            if time.time() - folder.stat().st_mtime > STALE_SECONDS:
                yield folder
        elif not any(_is_current(file) for file in folder.glob("*/" + FILE)):
            yield folder


def _is_current(file: Path) -> bool:
    try:
        described = msgspec.json.decode(file.read_bytes(), type=Description)
        return stamps_of([Path(name) for name in described.files]) == described.stamps
    except (OSError, *UNDECODABLE):
        return False
