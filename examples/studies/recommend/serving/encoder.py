"""Encoder of items whose experts come from a feed: slots that the loader fills, or memory that holds them all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .....workers.compute.experts.residency import Residency
from ..xsmoe.model import Recommender
from ..xsmoe.side import BACKBONE, ActiveExperts, SideLayer
from .widened import DOWN, UP

Matrices = dict[str, Tensor]
"""`down`, float [neurons, width], and `up`, float [width, neurons], of one expert."""


class Feed(Protocol):
    """Source of the experts of one layer."""

    def experts(self, layer: int, wanted: list[int]) -> Iterator[tuple[int, Matrices]]:
        """Yield each of the wanted experts once, in any order; its matrices hold until the next is asked for."""
        ...


class ResidentFeed:
    """All experts in memory."""

    def __init__(self, matrices: dict[str, Tensor]) -> None:
        self._matrices = matrices

    def experts(self, layer: int, wanted: list[int]) -> Iterator[tuple[int, Matrices]]:
        for expert in wanted:
            yield expert, {name: self._matrices[f"{layer}.{expert}.{name}"] for name in (DOWN, UP)}


class SlotFeed:
    """Experts in slots: compute's own holdings, which ask the loader for what is missing."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency

    def experts(self, layer: int, wanted: list[int]) -> Iterator[tuple[int, Matrices]]:
        self._residency.begin(layer, wanted)
        for group in self._residency.stream():
            for expert, weights in group:
                yield expert, {DOWN: weights[DOWN], UP: weights[UP]}


class ServedEncoder:
    """Encodes items as `Recommender.encode_items` does, with experts of a feed and a fixed order of all sums."""

    def __init__(self, model: Recommender, active: ActiveExperts) -> None:
        self._model, self._active = model, active
        self._layers = model.side_layers()

    @torch.no_grad()
    def encode(self, states: Tensor, feed: Feed) -> tuple[Tensor, np.ndarray]:
        """Return float [items, dim], and the experts that ran, uint16 [items, side layers, k]; k is `active.count`.

        `states` is float [modalities, 1 + layers, items, width].
        """
        ends, routes, number = [], [], 0
        for modality in states:
            x = modality[0]
            for hidden in modality[1:]:
                x, chosen = self._run_layer(number, x, hidden, feed)
                routes.append(chosen)
                number += 1
            ends.append(x)
        return self._model.join(torch.cat(ends, dim=1)), np.stack(routes, axis=1).astype(np.uint16)

    def _run_layer(self, number: int, x: Tensor, hidden: Tensor, feed: Feed) -> tuple[Tensor, np.ndarray]:
        layer: SideLayer = self._layers[number]
        weights = self._active.select(layer.weights(x))
        chosen = weights[:, 1:].topk(self._active.count or len(layer.experts), dim=1).indices
        outputs: dict[int, tuple[Tensor, Tensor]] = {}
        for expert, matrices in feed.experts(number, chosen.unique().tolist()):
            rows = (chosen == expert).any(1).nonzero()[:, 0]
            inner = functional.gelu(functional.linear(x[rows], matrices[DOWN]))
            outputs[expert] = rows, x[rows] + functional.linear(inner, matrices[UP])
        mixed = weights[:, BACKBONE, None] * hidden
        for expert, (rows, output) in sorted(outputs.items()):
            mixed = mixed.index_add(0, rows, weights[rows, expert + 1, None] * output)
        return mixed, chosen.numpy()
