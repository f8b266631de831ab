"""The routed experts of one layer on a device that computes many of them in one kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..experts.expert_rows import ExpertRows
from ..experts.layer import activate, first_projection, normalize, reduce_choices, require_all
from ..experts.routing import RoutingCollector
from .base import Device
from .groups import GroupedProduct, Groups, SlotMatrix, group_routes
from .layer import DeviceExpertsLayer
from .residency import DeviceResidency

SlotTable = tuple[list[int], torch.Tensor]


class GroupedExpertsLayer(DeviceExpertsLayer):
    """While an expert of the layer is missing the host reads the routes back, and launches what is there together.

    While none is, routes stay on the device, and the host waits for nothing. It is the same kernel in both cases, and
    what it gives does not depend on what else it is given (I1a).
    """

    def __init__(
        self,
        layer: int,
        feed: DeviceResidency,
        routing: RoutingCollector,
        device: Device,
        product: GroupedProduct,
        matrices: dict[str, SlotMatrix],
    ) -> None:
        super().__init__(layer, feed, routing, device)
        self._product, self._matrices = product, matrices
        self._table: SlotTable = [], torch.empty(0)

    def _compute(self, module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        slots = self._residency.enter(self._layer) if self._may_go_on(len(hidden)) else None
        if slots is None:
            return super()._compute(module, hidden, index, weights)
        routes = self._device.fetch(index)
        self._routing.add(self._layer, routes, hidden, weights)
        pairs, places, groups = group_routes(index, self._slots_there(slots))
        gathered = hidden.index_select(0, torch.div(pairs, index.shape[1], rounding_mode="floor"))
        products = torch.empty_like(gathered)
        self._device.kernels.launch(lambda: self._compute_groups(module, gathered, products, groups, 0, groups.rows))
        self._residency.leave(routes)
        self._device.catch_up()
        return reduce_choices(normalize(module, products), places, weights).to(hidden.dtype)

    def _may_go_on(self, tokens: int) -> bool:
        """Hints are told to the loader by the host, and are of use where the next layer may miss something."""
        silent = self.hinter is None or self.hinter.is_silent(self._layer, tokens)
        return silent or self._residency.is_whole(self._layer + 1)

    def _slots_there(self, slots: list[int]) -> torch.Tensor:
        """int64 [experts] on the device, sent anew only if they have changed."""
        if self._table[0] != slots:
            self._table = slots, self._device.upload(np.array(slots, dtype=np.int64))
        return self._table[1]

    def _launch(
        self, module: Any, gathered: torch.Tensor, rows: ExpertRows, predict: Callable[[], None]
    ) -> torch.Tensor:
        """What is there is launched first, and what comes next foreseen once the device has something to do."""
        products, missing = torch.empty_like(gathered), set(rows.experts)
        if not self._residency.ready:
            predict()
        has_foreseen = not self._residency.ready
        for wave in self._residency.waves():
            missing.difference_update(expert for expert, _ in wave)
            self._launch_wave(module, gathered, products, _wave_table(rows, wave), len(rows.places))
            if not has_foreseen:
                predict()
            has_foreseen = True
        require_all(missing, self._layer)
        return normalize(module, products)

    def _launch_wave(
        self, module: Any, gathered: torch.Tensor, products: torch.Tensor, table: np.ndarray, layer_rows: int
    ) -> None:
        _, starts, ends = table
        first, end = int(starts.min()), int(ends.max())
        groups = Groups(self._device.upload(table), int((ends - starts).sum()), layer_rows)
        self._device.kernels.launch(lambda: self._compute_groups(module, gathered, products, groups, first, end))

    def _compute_groups(
        self, module: Any, gathered: torch.Tensor, products: torch.Tensor, groups: Groups, first: int, end: int
    ) -> None:
        """The experts of `groups`, whose rows are among `first` to `end`, into their rows of `products`.

        What lies between them is activated in vain, and goes nowhere.
        """
        name = first_projection(module)
        inner = gathered.new_empty(len(gathered), self._matrices[name].out)
        self._product(gathered, self._matrices[name], groups, inner)
        activated = activate(module, inner[first:end]).contiguous()
        self._product(activated, self._matrices["down_proj"], groups, products, first)


def _wave_table(rows: ExpertRows, wave: list[tuple[int, int]]) -> np.ndarray:
    """int64 [3, experts] of these (expert, slot): see `Groups`."""
    places = [rows.experts.index(expert) for expert, _ in wave]
    return np.array([[slot for _, slot in wave], *([rows.bounds[place + more] for place in places] for more in (0, 1))])
