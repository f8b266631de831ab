"""Digest of a model's files, so that a job is not resumed with another model of the same name."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

from ...errors import CheckpointError

SMALL_SUFFIXES = (".json", ".jinja", ".model", ".txt")
MAX_SMALL_BYTES = 64 << 20
SAMPLES, SAMPLE_BYTES = 256, 4096
"""Places of a weight file that are read, evenly spread: 1 MiB of each file, whatever its size."""


def model_digest(folder: Path) -> str:
    """Return 32 hexadecimal digits over configuration, tokenizer and templates, and over samples of all weights.

    Weights that differ in less than the distance of two samples may have the same digest. Raises CheckpointError for a
    file that cannot be read.
    """
    digest = blake2b(digest_size=16)
    try:
        for file in sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder)):
            if file.suffix == ".safetensors":
                digest.update(_header(file, folder) + _samples(file))
            elif file.suffix in SMALL_SUFFIXES and file.stat().st_size <= MAX_SMALL_BYTES:
                digest.update(_header(file, folder) + file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", str(folder), "Check its permissions") from error
    return digest.hexdigest()


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _header(file: Path, folder: Path) -> bytes:
    return f"{file.relative_to(folder)} {file.stat().st_size}\n".encode()


def _samples(file: Path) -> bytes:
    """Return the bytes at `SAMPLES` places of a file, the first and the last bytes included."""
    size = file.stat().st_size
    last = max(size - SAMPLE_BYTES, 0)
    with file.open("rb", buffering=0) as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead into experts
        places = sorted({last * sample // (SAMPLES - 1) for sample in range(SAMPLES)})
        return b"".join(os.pread(opened.fileno(), SAMPLE_BYTES, place) for place in places)
