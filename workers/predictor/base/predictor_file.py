"""Trained predictors on disk: one npz with a header, which names kind, sizes and model, and arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

from ....configs.decoding import UNDECODABLE
from ....errors import CheckpointError, UsageError
from ...traces.arrays import read_arrays
from .model_shape import ModelShape

FORMAT_VERSION = 1
REMEDY = "Train one for this model: `expertflow train TRACE --out FILE`, with --kind paper for that of the paper"

Shape = TypeVar("Shape", bound=msgspec.Struct)


class Header(msgspec.Struct, Generic[Shape], frozen=True, kw_only=True):
    """Header of a predictor file, stored as JSON."""

    kind: str
    shape: Shape
    """Sizes; a struct with at least `layers`, `experts` and `top_k`."""
    version: int = FORMAT_VERSION
    model: str = ""
    """Fingerprint of the model whose routing the predictor learned; empty: unknown."""
    figures: dict[str, float] = {}
    """Figures measured on held-out sequences after the training."""


@dataclass(frozen=True)
class Stored(Generic[Shape]):
    """Content of a predictor file. Weights are float32 here and half precision in the file."""

    header: Header[Shape]
    weights: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]

    def array(self, name: str, where: str) -> np.ndarray:
        """Return an array of the file `where`, in the shape that its kind of predictor defines.

        Raise UsageError if there is no array of this name.
        """
        if name not in self.arrays:
            raise UsageError(f"the array {name} is missing", where, REMEDY)
        return self.arrays[name]


def write_stored(file: Path, content: Stored[Any]) -> None:
    """Create or replace the file."""
    header = np.frombuffer(msgspec.json.encode(content.header), dtype=np.uint8)
    halves = {f"weights.{name}": array.astype(np.float16) for name, array in content.weights.items()}
    arrays: dict[str, Any] = {"header": header, **halves, **content.arrays}
    with file.open("wb") as target:
        np.savez_compressed(target, **arrays)


def stored_kind(file: Path) -> str:
    """Return the kind of a stored predictor. Raise UsageError if the file is no predictor."""
    header = read_arrays(file, "a predictor", REMEDY).get("header")
    if header is None:
        raise UsageError("is no predictor: it has no header", str(file), REMEDY)
    try:
        return msgspec.json.decode(header.tobytes(), type=_Kind).kind
    except (ValueError, *UNDECODABLE) as error:
        raise UsageError(f"cannot be read as a predictor ({error})", str(file), REMEDY) from error


class _Kind(msgspec.Struct):
    kind: str


def read_stored(file: Path, kind: str, shape: type[Shape]) -> Stored[Shape]:
    """Read a predictor. Raise UsageError if the file holds none of this kind and of this version."""
    arrays = read_arrays(file, "a predictor", REMEDY)
    try:
        header = _header(arrays.pop("header", None), kind, shape, str(file))
    except (ValueError, TypeError, *UNDECODABLE) as error:
        raise UsageError(f"cannot be read as a predictor ({error})", str(file), REMEDY) from error
    weights = {name: _as_weight(name, array, file) for name, array in arrays.items() if name.startswith("weights.")}
    others = {name: array for name, array in arrays.items() if name not in weights}
    return Stored(header, {name.removeprefix("weights."): array for name, array in weights.items()}, others)


def _as_weight(name: str, array: np.ndarray, file: Path) -> np.ndarray:
    if array.dtype.kind != "f":
        raise UsageError(f"the array {name} holds {array.dtype}, not numbers of half precision", str(file), REMEDY)
    return array.astype(np.float32)


def _header(stored: np.ndarray | None, kind: str, shape: type[Shape], where: str) -> Header[Shape]:
    if stored is None:
        raise UsageError("is no predictor: it has no header", where, REMEDY)
    stated = msgspec.json.decode(stored.tobytes(), type=dict[str, Any])
    if stated.get("version") != FORMAT_VERSION or stated.get("kind") != kind:
        found = f"kind '{stated.get('kind')}', version {stated.get('version')}"
        raise UsageError(f"is of {found}; wanted is kind '{kind}', version {FORMAT_VERSION}", where, REMEDY)
    return msgspec.convert(stated, Header[shape])


def check_belongs(header: Header[Any], model_shape: ModelShape, where: str) -> None:
    """Raise CheckpointError if the predictor was trained for another model."""
    shape = header.shape
    sizes = shape.layers, shape.experts, shape.top_k
    wanted = model_shape.layers, model_shape.experts, model_shape.top_k
    if sizes != wanted:
        words = "{} layers of {} experts, top {}"
        what = f"was trained for {words.format(*sizes)}; this model has {words.format(*wanted)}"
        raise CheckpointError(what, where, REMEDY)
    if header.model and model_shape.fingerprint and header.model != model_shape.fingerprint:
        what = f"was trained for the model {header.model}; this one is {model_shape.fingerprint}"
        raise CheckpointError(what, where, REMEDY)
