"""The routed experts of one layer on a device: the routes are read back once, then all work is enqueued."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ...kernels.dispatch import ExpertKernels
from ..experts.expert_rows import ExpertRows, rows_by_expert
from ..experts.layer import ExpertsLayer, reduce_choices, require_all, run_expert, weighs_input
from ..experts.routing import RoutingCollector
from ..experts.slots import ExpertWeights
from .base import Device
from .residency import DeviceResidency


class DeviceExpertsLayer(ExpertsLayer):
    """Launches one kernel an expert, whatever the budget, so that no bit depends on it (I1a).

    The host must read the routes to know which experts are missing, so it waits for the router once a layer.
    """

    def __init__(
        self,
        layer: int,
        feed: DeviceResidency,
        routing: RoutingCollector,
        device: Device,
        kernels: ExpertKernels | None = None,
    ) -> None:
        super().__init__(layer, feed, routing, kernels)
        self._residency, self._device = feed, device

    def _compute(self, module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        routes = self._device.fetch(index)()
        routed = self._device.kernels.record()
        self._routing.add(self._layer, routes, hidden, weights)
        rows = rows_by_expert(routes)
        self._residency.begin(self._layer, rows.experts)
        pair_of_row, row_of_pair = self._upload(rows)
        gathered = hidden.index_select(0, torch.div(pair_of_row, routes.shape[1], rounding_mode="floor"))
        if weighs_input(module):
            gathered *= weights.reshape(-1, 1)[pair_of_row]
            weights = torch.ones_like(weights)

        def predict() -> None:
            if self.hinter is not None:
                with self._device.side_stream(routed):
                    self.hinter.observe(self._layer, routes, hidden)

        products = self._launch(module, gathered, rows, predict)
        self._device.join_kernels()
        return reduce_choices(products, row_of_pair, weights).to(hidden.dtype)

    def _upload(self, rows: ExpertRows) -> tuple[torch.Tensor, torch.Tensor]:
        """Upload the pair of each row and the row of each pair, int64, in one transfer."""
        both = self._device.upload(np.concatenate([rows.pair_of_row, rows.row_of_pair]))
        return both[: len(rows.pair_of_row)], both[len(rows.pair_of_row) :]

    def _launch(
        self, module: Any, gathered: torch.Tensor, rows: ExpertRows, predict: Callable[[], None]
    ) -> torch.Tensor:
        """Launch all experts on their rows; call `predict` once the device has work."""
        products = torch.empty_like(gathered)
        ranges = {expert: (rows.bounds[i], rows.bounds[i + 1]) for i, expert in enumerate(rows.experts)}
        ready = self._residency.ready_count
        if not ready:
            predict()
        for count, ((expert, own),) in enumerate(self._residency.stream(), 1):
            part = slice(*ranges.pop(expert))
            self._device.kernels.launch(self._kernel(module, own, gathered[part], products[part]))
            if count == ready:
                predict()
        require_all(ranges, self._layer)
        return products

    def _kernel(
        self, module: Any, own: ExpertWeights, rows: torch.Tensor, products: torch.Tensor
    ) -> Callable[[], None]:
        """Return a function that computes one expert's rows [n, width] into `products` [n, width]."""

        def run() -> None:
            products.copy_(run_expert(module, self._kernels.unpack(own), rows))

        return run
