"""The routed experts of one layer on a device that computes many of them in one kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ...kernels.experts import activate, first_projection, normalize
from ..experts.expert_rows import ExpertRows
from ..experts.layer import reduce_choices, require_all
from ..experts.routing import RoutingCollector
from .base import Device
from .grouped_product import GroupedProduct, Groups, SlotMatrix, group_routes
from .layer import DeviceExpertsLayer
from .residency import DeviceResidency

SlotTable = tuple[list[int], torch.Tensor]


class GroupedExpertsLayer(DeviceExpertsLayer):
    """Launches the resident experts of a layer together.

    If all are resident, routes stay on the device and the host does not wait. Otherwise the host reads the routes back.
    Both ways run the same kernel, and its result does not depend on what is launched together (I1a).
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
        slots = self._residency.enter(self._layer) if self._may_defer_routes(len(hidden)) else None
        if slots is None:
            return super()._compute(module, hidden, index, weights)
        routes = self._device.fetch(index)
        self._routing.add(self._layer, routes, hidden, weights)
        pair_of_row, row_of_pair, groups = group_routes(index, self._upload_slots(slots))
        gathered = hidden.index_select(0, torch.div(pair_of_row, index.shape[1], rounding_mode="floor"))
        products = torch.empty_like(gathered)
        self._device.kernels.launch(lambda: self._compute_groups(module, gathered, products, groups, 0, groups.rows))
        self._residency.leave(routes)
        self._device.join_kernels()
        return reduce_choices(normalize(module, products), row_of_pair, weights).to(hidden.dtype)

    def _may_defer_routes(self, tokens: int) -> bool:
        """Return whether no hint is due: a hint needs the routes, and helps only if the next layer may miss."""
        silent = self.hinter is None or self.hinter.is_silent(self._layer, tokens)
        return silent or self._residency.is_resident(self._layer + 1)

    def _upload_slots(self, slots: list[int]) -> torch.Tensor:
        """Return the slots as int64 [experts] on the device; upload them only if they changed."""
        if self._table[0] != slots:
            self._table = slots, self._device.upload(np.array(slots, dtype=np.int64))
        return self._table[1]

    def _launch(
        self, module: Any, gathered: torch.Tensor, rows: ExpertRows, predict: Callable[[], None]
    ) -> torch.Tensor:
        """Launch wave by wave; call `predict` once the device has work."""
        products, missing = torch.empty_like(gathered), set(rows.experts)
        if not self._residency.ready_count:
            predict()
        has_predicted = not self._residency.ready_count
        for wave in self._residency.waves():
            missing.difference_update(expert for expert, _ in wave)
            self._launch_wave(module, gathered, products, _wave_table(rows, wave), len(rows.row_of_pair))
            if not has_predicted:
                predict()
            has_predicted = True
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
        """Compute the experts of `groups`, all within rows `first` to `end`, into their rows of `products`.

        Rows of other experts in between are activated needlessly and then ignored.
        """
        name = first_projection(module)
        inner = gathered.new_empty(len(gathered), self._matrices[name].out)
        self._product(gathered, self._matrices[name], groups, inner)
        activated = activate(module, inner[first:end]).contiguous()
        self._product(activated, self._matrices["down_proj"], groups, products, first)


def _wave_table(rows: ExpertRows, wave: list[tuple[int, int]]) -> np.ndarray:
    """Return the table of `Groups` for these (expert, slot), int64 [3, experts]: slots, starts, ends."""
    indices = [rows.experts.index(expert) for expert, _ in wave]
    slots = [slot for _, slot in wave]
    return np.array([slots, *([rows.bounds[index + offset] for index in indices] for offset in (0, 1))])
