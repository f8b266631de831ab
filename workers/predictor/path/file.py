"""A predictor on disk: one npz with a header, the weights and the token table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import msgspec
import numpy as np

from ....errors import UsageError
from ..belonging import REMEDY
from .shape import PathShape

FORMAT_VERSION = 1


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file says about itself."""

    version: int = FORMAT_VERSION
    kind: str = "path"
    model: str = ""
    """Fingerprint of the model whose routing it learned; empty: unknown."""
    shape: PathShape
    figures: dict[str, float] = {}
    """Measured on held-out sequences when it was trained."""


@dataclass(frozen=True)
class TokenCounts:
    """What the training sequences showed of single tokens."""

    counts: np.ndarray
    """uint8 [lines, layers * experts]: how often the token used the expert, of `seen` times."""
    seen: np.ndarray
    """uint8 [lines]"""
    tokens: np.ndarray
    """[lines]: token ids (int64), or their strings."""

    @property
    def named(self) -> bool:
        """Tokens are known by their strings."""
        return self.tokens.dtype.kind == "U"


@dataclass(frozen=True)
class PathFile:
    """A trained predictor."""

    header: Header
    weights: dict[str, np.ndarray]
    table: TokenCounts


def write_path(file: Path, predictor: PathFile) -> None:
    """Weights are kept in half precision."""
    header = np.frombuffer(msgspec.json.encode(predictor.header), dtype=np.uint8)
    halves = {f"weights.{name}": array.astype(np.float16) for name, array in predictor.weights.items()}
    table = {f"table.{name}": getattr(predictor.table, name) for name in ("counts", "seen", "tokens")}
    with file.open("wb") as target:
        np.savez_compressed(target, header=header, **halves, **table)


def read_path(file: Path) -> PathFile:
    """Raises UsageError if this is no path predictor of this version."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return _predictor_of({name: arrays[name] for name in arrays.files}, str(file))
    except (OSError, ValueError, BadZipFile) as error:
        raise UsageError(f"cannot be read as a predictor ({error})", str(file), REMEDY) from error


def _predictor_of(arrays: dict[str, np.ndarray], where: str) -> PathFile:
    header = read_header(arrays, where)
    try:
        weights = {name: array.astype(np.float32) for name, array in _below("weights.", arrays).items()}
        table = TokenCounts(**_below("table.", arrays))
    except TypeError as error:
        raise UsageError(f"arrays are missing ({error})", where, REMEDY) from error
    return PathFile(header, weights, table)


def read_header(arrays: dict[str, np.ndarray], where: str) -> Header:
    """Raises UsageError if the file is of another version or kind."""
    if "header" not in arrays:
        raise UsageError("is no predictor: it has no header", where, REMEDY)
    stated = msgspec.json.decode(arrays["header"].tobytes(), type=dict[str, Any])
    if stated.get("version") != FORMAT_VERSION or stated.get("kind") != "path":
        found = f"kind '{stated.get('kind')}', version {stated.get('version')}"
        raise UsageError(f"is of {found}; wanted is kind 'path', version {FORMAT_VERSION}", where, REMEDY)
    return msgspec.convert(stated, Header)


def _below(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
