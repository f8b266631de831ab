"""Computes the experts of a layer for rows in lockstep: an expert is brought once and gets a call for each row."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..experts.expert_rows import rows_by_expert
from ..experts.layer import ExpertFeed, ExpertsLayer, gather_rows, reduce_choices, require_all, run_expert
from ..experts.routing import RoutingCollector
from ..experts.slots import ExpertWeights
from .lockstep import LayerCall, Lockstep


class LockstepLayer(ExpertsLayer):
    """ExpertsLayer that computes the rows of a `Lockstep` together; any other forward goes as in its base."""

    def __init__(self, layer: int, feed: ExpertFeed, routing: RoutingCollector, lockstep: Lockstep) -> None:
        super().__init__(layer, feed, routing)
        self._lockstep = lockstep

    def forward(self, module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        if not self._lockstep.in_forward:
            return super().forward(module, hidden, top_k_index, top_k_weights)
        compute = partial(self._compute_calls, module)
        return self._lockstep.wait_for_layer(LayerCall(self._layer, compute, hidden, top_k_index, top_k_weights))

    def _compute_calls(self, module: Any, calls: list[LayerCall]) -> list[Tensor]:
        routes = np.concatenate([call.index.numpy() for call in calls])
        hidden = torch.cat([call.hidden for call in calls])
        self._routing.add(self._layer, routes, hidden, torch.cat([call.weights for call in calls]))
        self._feed.begin(self._layer, np.unique(routes).tolist())
        if self.hinter is not None:  # as in the base: after `Miss`, and before the work that hides the loads
            self.hinter.observe(self._layer, routes, hidden)
        rows = [CallSegments(module, call) for call in calls]
        self._run_segments(rows)
        return [row.reduce() for row in rows]

    def _run_segments(self, rows: list[CallSegments]) -> None:
        """Run every expert, in the order of arrival, on the segment of each row that chose it."""
        missing = {expert for row in rows for expert in row.ranges}
        for expert, weights in self._feed.stream():
            for row in rows:
                if expert in row.ranges:
                    row.run(expert, weights)
            missing.remove(expert)
        require_all(missing, self._layer)


class CallSegments:
    """Computes one row's call of a layer: a segment of rows for each expert that its tokens chose.

    All tensors are the row's own. So shapes, strides and even the offsets in memory are those that the row has alone.
    """

    def __init__(self, module: Any, call: LayerCall) -> None:
        self._module, self._dtype = module, call.hidden.dtype
        rows = rows_by_expert(call.index.numpy())
        self.ranges = {expert: (rows.bounds[i], rows.bounds[i + 1]) for i, expert in enumerate(rows.experts)}
        """Expert -> its rows, from and up to."""
        self._row_of_pair = torch.from_numpy(rows.row_of_pair)
        self._gathered, self._weights = gather_rows(module, call.hidden, call.weights, rows)
        self._products = torch.empty_like(self._gathered)

    def run(self, expert: int, weights: ExpertWeights) -> None:
        """Compute the products of one expert."""
        low, high = self.ranges[expert]
        self._products[low:high] = run_expert(self._module, weights, self._gathered[low:high])

    def reduce(self) -> Tensor:
        """Return each token's weighted sum, [tokens, width], once every expert has run."""
        return reduce_choices(self._products, self._row_of_pair, self._weights).to(self._dtype)
