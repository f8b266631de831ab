"""Errors that rounding made, layer by layer, kept in a file so that a resumed run knows those of its beginning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .plan import Matrix
from .rounding import squared_errors


class LayerErrors:
    """Sums of squared errors and of squares of each matrix, in the lines of `file`."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, matrix: Matrix, weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Add a matrix: its weight [out, in], codes [out, in] and scales [out, groups]."""
        error, whole = squared_errors(weight, codes, scales)
        line = {"name": matrix.stored.name, "layer": matrix.layer, "error": error, "whole": whole}
        with self.file.open("a") as file:
            file.write("\n" + json.dumps(line))  # the line before may have been broken off

    def by_layer(self) -> dict[int, float]:
        """Return the relative error of each layer: the root of squared errors over squares.

        A matrix that was rounded twice, since its shard was broken off, counts once.
        """
        lines = {line["name"]: line for line in _whole_lines(self.file.read_text())}
        sums: dict[int, tuple[float, float]] = {}
        for line in lines.values():
            error, whole = sums.get(line["layer"], (0.0, 0.0))
            sums[line["layer"]] = error + line["error"], whole + line["whole"]
        return {layer: (error / whole) ** 0.5 if whole else 0.0 for layer, (error, whole) in sorted(sums.items())}


def _whole_lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
