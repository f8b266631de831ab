"""Errors that rounding made, layer by layer, kept in a file so that a resumed run knows those of its beginning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .matrices import Matrix
from .rounding import squared_errors


class LayerErrors:
    """Sums of squared errors and of squares of each matrix, in the lines of `file`."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, matrix: Matrix, weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Add a matrix: its weight [out, in], codes [out, in] and scales [out, groups]."""
        error, whole = squared_errors(weight, codes, scales)
        where = {"name": matrix.stored.name, "layer": matrix.layer, "expert": matrix.expert}
        line = {**where, "error": error, "whole": whole}
        with self.file.open("a") as file:
            file.write("\n" + json.dumps(line))  # the line before may have been broken off

    def names(self) -> set[str]:
        """Return the names of the matrices that were added."""
        return set(self._lines())

    def by_layer(self) -> dict[int, float]:
        """Return the relative error of each layer: the root of squared errors over squares.

        A matrix that was rounded twice, since its shard was broken off, counts once.
        """
        sums = self._sums("layer")
        return {layer: share**0.5 for (layer,), share in sums.items()}

    def by_expert(self) -> dict[tuple[int, int], float]:
        """Return the squared errors over the squares of each (layer, expert)."""
        return {(layer, expert): share for (layer, expert), share in self._sums("layer", "expert").items()}

    def _sums(self, *parts: str) -> dict[tuple[int, ...], float]:
        """Return squared errors over squares of the matrices that these fields tell apart, ascending."""
        sums: dict[tuple[int, ...], tuple[float, float]] = {}
        for line in self._lines().values():
            key = tuple(line[part] for part in parts)
            error, whole = sums.get(key, (0.0, 0.0))
            sums[key] = error + line["error"], whole + line["whole"]
        return {key: error / whole if whole else 0.0 for key, (error, whole) in sorted(sums.items())}

    def _lines(self) -> dict[str, dict[str, Any]]:
        """Return the last line of each matrix by its name."""
        text = self.file.read_text() if self.file.exists() else ""
        return {line["name"]: line for line in _whole_lines(text)}


def _whole_lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
