"""Fingerprint of a model, to tell whether a trace, a predictor or gates belong to it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from ..checkpoint.headers import StoredTensor

DIGEST_BYTES = 16
MAX_TENSOR_BYTES = 512 * 1024
"""Largest tensor that counts: routers and norms are small, and they tell models apart at little cost."""


def fingerprint(
    stored: Iterable[StoredTensor], experts: Collection[str], files: list[Path], sizes: tuple[int, ...]
) -> str:
    """Return 32 hexadecimal digits over the small stored tensors (name, type, shape, bytes) and `sizes`.

    `experts` names the tensors that routed experts are made of. They do not count, so a copy with wider experts that
    computes the same function (widen.py) has the same fingerprint. Raises OSError if a file cannot be read.
    """
    digest = hashlib.blake2b(repr(sizes).encode(), digest_size=DIGEST_BYTES)
    small = [tensor for tensor in stored if tensor.count_bytes <= MAX_TENSOR_BYTES and tensor.name not in experts]
    for tensor in sorted(small, key=lambda tensor: tensor.name):
        digest.update(repr((tensor.name, tensor.dtype, tensor.shape)).encode())
        with files[tensor.file].open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead into experts
            file.seek(tensor.offset_bytes)
            digest.update(file.read(tensor.count_bytes))
    return digest.hexdigest()
