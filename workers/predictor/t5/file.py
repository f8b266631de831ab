"""The paper's predictor on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..base.predictor_file import Header, Stored, read_stored, write_stored
from .shape import T5Shape

KIND = "paper"


@dataclass(frozen=True)
class T5File:
    """A trained predictor."""

    header: Header[T5Shape]
    weights: dict[str, np.ndarray]
    tokens: np.ndarray
    """[numbers]: the token ids (int64), or strings, that the embedding's numbers from `FIRST` on stand for."""


def write_paper(file: Path, predictor: T5File) -> None:
    write_stored(file, Stored(predictor.header, predictor.weights, {"tokens": predictor.tokens}))


def read_paper(file: Path) -> T5File:
    """Raises UsageError if this is no predictor of the paper's kind and of this version."""
    stored = read_stored(file, KIND, T5Shape)
    return T5File(stored.header, stored.weights, stored.named("tokens", str(file)))
