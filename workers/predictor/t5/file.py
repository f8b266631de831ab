"""The paper's predictor on disk: sizes, weights and the tokens that it knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from ..base.predictor_file import Header, Stored, read_stored, write_stored

KIND = "paper"
PAD, UNKNOWN, FIRST = 0, 1, 2
"""Input ids of the embedding: padding, tokens that were never seen, and the first of the others."""


class T5Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a T5 of 6 + 6 layers of width 32. The names are those of the file's header.

    It has 3.78 M parameters with a vocabulary of 32,128 (7.21 MB in half precision).
    """

    layers: int
    experts: int
    top_k: int
    vocabulary: int
    """Input ids of the embedding."""
    width: int = 32
    inner: int = 2048
    blocks: int = 6
    heads: int = 8
    head: int = 64
    window: int = 512
    """Most tokens that encoder and decoder see."""


@dataclass(frozen=True)
class T5File:
    """Content of a file: a trained predictor of the paper's kind."""

    header: Header[T5Shape]
    weights: dict[str, np.ndarray]
    tokens: np.ndarray
    """[ids]: the token ids (int64), or strings, that the input ids from `FIRST` on stand for."""
    where: str = "predictor"
    """Name of the file, for errors."""


def write_t5(file: Path, predictor: T5File) -> None:
    """Create or replace the file."""
    write_stored(file, Stored(predictor.header, predictor.weights, {"tokens": predictor.tokens}))


def read_t5(file: Path) -> T5File:
    """Read a predictor. Raise UsageError if the file holds none of the paper's kind and of this version."""
    stored = read_stored(file, KIND, T5Shape)
    return T5File(stored.header, stored.weights, stored.array("tokens", str(file)), str(file))
