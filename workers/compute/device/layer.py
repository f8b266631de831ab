"""The routed experts of one layer on a device: one read-back of the routes, then everything is enqueued."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..experts.expert_rows import ExpertRows, rows_by_expert
from ..experts.layer import ExpertsLayer, reduce_choices, require_all, run_expert, weighs_input
from ..experts.routing import RoutingCollector
from ..experts.slots import ExpertWeights
from .base import Device
from .residency import DeviceResidency


class DeviceExpertsLayer(ExpertsLayer):
    """One expert a launch, whatever the budget, so that no bit depends on it (I1a).

    The host has to know the routes, to know what is missing: so it waits for the router once a layer.
    """

    def __init__(self, layer: int, feed: DeviceResidency, routing: RoutingCollector, device: Device) -> None:
        super().__init__(layer, feed, routing)
        self._residency, self._device = feed, device

    def _compute(self, module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        routes = self._device.fetch(index)()
        seen = self._device.kernels.record()
        self._routing.add(self._layer, routes, hidden, weights)
        rows = rows_by_expert(routes)
        self._residency.begin(self._layer, rows.experts)
        pairs, places = self._upload(rows)
        gathered = hidden.index_select(0, torch.div(pairs, routes.shape[1], rounding_mode="floor"))
        if weighs_input(module):
            gathered *= weights.reshape(-1, 1)[pairs]
            weights = torch.ones_like(weights)

        def predict() -> None:
            if self.hinter is not None:
                with self._device.aside(seen):
                    self.hinter.observe(self._layer, routes, hidden)

        products = self._launch(module, gathered, rows, predict)
        self._device.catch_up()
        return reduce_choices(products, places, weights).to(hidden.dtype)

    def _upload(self, rows: ExpertRows) -> tuple[torch.Tensor, torch.Tensor]:
        """The pair in each row, and the row of each pair, in one transfer."""
        both = self._device.upload(np.concatenate([rows.pairs, rows.places]))
        return both[: len(rows.pairs)], both[len(rows.pairs) :]

    def _launch(
        self, module: Any, gathered: torch.Tensor, rows: ExpertRows, predict: Callable[[], None]
    ) -> torch.Tensor:
        """All experts on their rows; what comes next is foreseen once the device has something to do."""
        products = torch.empty_like(gathered)
        ranges = {expert: (rows.bounds[i], rows.bounds[i + 1]) for i, expert in enumerate(rows.experts)}
        ready = self._residency.ready
        if not ready:
            predict()
        for count, (expert, own) in enumerate(self._residency.stream(), 1):
            part = slice(*ranges.pop(expert))
            self._device.kernels.launch(_kernel(module, own, gathered[part], products[part]))
            if count == ready:
                predict()
        require_all(ranges, self._layer)
        return products


def _kernel(module: Any, own: ExpertWeights, rows: torch.Tensor, products: torch.Tensor) -> Callable[[], None]:
    """One expert on its rows [n, width], into its `products`."""

    def run() -> None:
        products.copy_(run_expert(module, own, rows))

    return run
