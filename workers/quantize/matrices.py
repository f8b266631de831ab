"""Matrices of the experts of a checkpoint, in the order in which a slot holds them: one read then brings an expert."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from ...errors import CheckpointError
from ..checkpoint.headers import StoredTensor

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_IN_ONE_TENSOR = {"gate_proj": 0, "w1": 0, "up_proj": 1, "w3": 1}
"""Projections whose rows a slot holds one after the other, in this order (transformers' `gate_up_proj`)."""


@dataclass(frozen=True)
class Matrix:
    """A matrix [out, in] of an expert, as the source stores it."""

    stored: StoredTensor
    file: Path
    layer: int
    """Number of its decoder layer, as in its name."""
    expert: int
    """Number of its expert in that layer."""

    @property
    def name(self) -> str:
        """Return its name without the last part, to which the names of codes and scales are added."""
        return self.stored.name.removesuffix(".weight")

    @property
    def module(self) -> tuple[int, str, int]:
        """Return its decoder layer, the path of the experts there, and the number of its expert."""
        return self.layer, self.name.rsplit(".", 2)[0], self.expert

    @property
    def projection(self) -> str:
        """Return the name of the matrix inside its expert."""
        return self.name.rsplit(".", 1)[1]

    def read(self) -> torch.Tensor:
        """Return it. Raises CheckpointError if a value is not finite."""
        values = torch.frombuffer(self.stored.read(self.file), dtype=DTYPES[self.stored.dtype])
        if not values.isfinite().all():
            raise CheckpointError("holds values that are not finite", self.stored.name, "Use a whole checkpoint")
        return values.view(self.stored.shape)


def sort_by_expert(matrices: Iterable[Matrix]) -> list[Matrix]:
    """Return the matrices layer by layer and expert by expert; those that share a slot tensor come first."""
    return sorted(matrices, key=lambda one: (one.module, _IN_ONE_TENSOR.get(one.projection, 2), one.projection))


def split_by_tensor(matrices: Iterable[Matrix]) -> list[list[Matrix]]:
    """Group sorted matrices by the slot tensor that they become parts of; any other one is a group of its own."""
    groups = groupby(matrices, key=lambda one: (one.module, one.projection in _IN_ONE_TENSOR or one.projection))
    return [list(own) for _, own in groups]
