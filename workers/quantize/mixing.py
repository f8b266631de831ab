"""Chooses the layers whose experts get 8 bits: those in which 4 bits would cost most.

Experts of one layer share a layout, and the kernels of a layer are bound to it. So a layer is what gets more bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import CheckpointError, UsageError
from ..checkpoint.shards import ReportProgress
from .errors import LayerErrors
from .importance import Importance
from .matrices import Matrix
from .rounding import quantise

NARROW_BITS = 4
"""Bits of the other layers."""


@dataclass(frozen=True)
class Mixture:
    """The share of a model's layers that may have 8 bits, 0 to 1, and the figures by which they are chosen."""

    importance: Importance
    share: float

    @staticmethod
    def count(share: float, layers: int) -> int:
        """Return the number of layers that get 8 bits. Raises UsageError if the share leaves nothing to choose."""
        count = math.floor(share * layers + 1e-9)
        if not 0 < count < layers:
            held = "all" if count else "none"
            what = f"{100 * share:g} % of {layers} MoE layers are {held} of them, and a layer has one number of bits"
            remedy = f"Give {math.ceil(100 / layers)}% or more, below 100%" if layers > 1 else "Leave out --mixed"
            raise UsageError(what, "mixed_share", remedy)
        return count

    @property
    def wide_count(self) -> int:
        """Return the number of layers that get 8 bits. Raises UsageError as `count`."""
        return self.count(self.share, len(self.importance.layers))

    def choose(self, costs: dict[int, float]) -> tuple[int, ...]:
        """Return the layers that get 8 bits, ascending; of equal costs the earlier layer goes first."""
        dearest = sorted(costs, key=lambda layer: (-costs[layer], layer))
        return tuple(sorted(dearest[: self.wide_count]))


def measure_costs(
    matrices: Sequence[Matrix], group: int, importance: Importance, file: Path, progress: ReportProgress
) -> dict[int, float]:
    """Return what 4 bits would cost each decoder layer: the square of the error in a token's state, over its square.

    It is estimated as the mean error of the layer's experts, each weighted by its load, times the contribution of the
    layer. The error of an expert is the sum of the squared errors of its matrices over the sum of their squares. What
    was never chosen is not read. One matrix is in memory at a time; those whose errors are in `file` are not measured
    again. Raises CheckpointError if an expert is missing or has values that are not finite.
    """
    _check_complete(matrices, importance)
    by_layer = dict(zip(importance.layers, importance.loads, strict=True))
    errors = LayerErrors(file)
    known = errors.names()
    used = [each for each in matrices if each.layer in by_layer and by_layer[each.layer][each.expert] > 0]
    for done, matrix in enumerate(used, start=1):
        if matrix.stored.name not in known:
            weight = matrix.read()
            errors.add(matrix, weight, *quantise(weight, NARROW_BITS, group or weight.shape[1]))
        progress("measuring", done, len(used))
    costs = dict.fromkeys(importance.layers, 0.0)
    for (layer, expert), error in errors.by_expert().items():
        costs[layer] += float(by_layer[layer][expert]) * error
    contributions = dict(zip(importance.layers, importance.contributions.tolist(), strict=True))
    return {layer: cost * contributions[layer] for layer, cost in costs.items()}


def _check_complete(matrices: Sequence[Matrix], importance: Importance) -> None:
    """Raise CheckpointError if an expert of the trace is not in the checkpoint.

    A checkpoint may have more layers: those that predict further tokens (MTP) are in files, and in no model.
    """
    there = {(matrix.layer, matrix.expert) for matrix in matrices}
    known = {(layer, expert) for layer in importance.layers for expert in range(importance.loads.shape[1])}
    for layer, expert in sorted(known - there):
        what = f"layer {layer} has an expert {expert} in the trace that is not in the checkpoint"
        raise CheckpointError(what, "experts", "Download the checkpoint again")
