"""Chooses the layers whose experts keep 8 bits: those in which 4 bits would cost most.

Experts of one layer share a layout, and the kernels of a layer are bound to it. So a layer is what gets more bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import CheckpointError, UsageError
from ..checkpoint.shards import ReportProgress
from .errors import LayerErrors
from .importance import ExpertLoads
from .plan import Matrix
from .rounding import quantise

NARROW_BITS = 4
"""Bits of the other layers."""


@dataclass(frozen=True)
class Mixture:
    """The share of a model's layers that may keep 8 bits, 0 to 1, and the loads that choose them."""

    loads: ExpertLoads
    share: float

    @property
    def wide_count(self) -> int:
        """Return the number of layers that keep 8 bits. Raises UsageError if the share leaves nothing to choose."""
        layers = len(self.loads.layers)
        count = math.floor(self.share * layers + 1e-9)
        if not 0 < count < layers:
            held = "all" if count else "none"
            what = f"{100 * self.share:g} % of {layers} MoE layers is {held} of them, and layers are chosen whole"
            remedy = f"Give {math.ceil(100 / layers)}% to {100 - math.ceil(100 / layers)}%, or leave out --mixed"
            raise UsageError(what, "mixed_share", remedy)
        return count

    def choose(self, costs: dict[int, float]) -> tuple[int, ...]:
        """Return the layers that keep 8 bits, ascending; of equal costs the earlier layer goes first."""
        dearest = sorted(costs, key=lambda layer: (-costs[layer], layer))
        return tuple(sorted(dearest[: self.wide_count]))


def measure_costs(
    matrices: Sequence[Matrix], group: int, loads: ExpertLoads, file: Path, progress: ReportProgress
) -> dict[int, float]:
    """Return what 4 bits would cost each decoder layer: the error of its experts, each weighted by its load.

    The error of an expert is the sum of the squared errors of its matrices over the sum of their squares. Experts that
    were never chosen cost nothing and are not read. One matrix is in memory at a time; those whose errors are in
    `file` are not measured again. Raises CheckpointError if an expert is missing or has values that are not finite.
    """
    _check_complete(matrices, loads)
    by_layer = dict(zip(loads.layers, loads.loads, strict=True))
    errors = LayerErrors(file)
    known = errors.names()
    used = [matrix for matrix in matrices if by_layer[matrix.layer][matrix.expert] > 0]
    for done, matrix in enumerate(used, start=1):
        if matrix.stored.name not in known:
            weight = matrix.read()
            errors.add(matrix, weight, *quantise(weight, NARROW_BITS, group or weight.shape[1]))
        progress("measuring", done, len(used))
    costs = dict.fromkeys(loads.layers, 0.0)
    for (layer, expert), error in errors.by_expert().items():
        costs[layer] += float(by_layer[layer][expert]) * error
    return costs


def _check_complete(matrices: Sequence[Matrix], loads: ExpertLoads) -> None:
    """Raise CheckpointError if an expert of the trace is not in the checkpoint."""
    there = {(matrix.layer, matrix.expert) for matrix in matrices}
    for layer, expert in np.ndindex(loads.loads.shape):
        if (loads.layers[layer], expert) not in there:
            what = f"has no expert {expert} in layer {loads.layers[layer]}, which the trace knows"
            raise CheckpointError(what, "the checkpoint", "Download the checkpoint again")
