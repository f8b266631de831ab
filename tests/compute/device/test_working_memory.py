"""I5: what a MoE layer takes for its rows stays within the estimate that the budget on a device is made of."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from expertflow.workers.compute.device.fake import FakeDevice
from expertflow.workers.compute.device.grouped_layer import GroupedExpertsLayer
from expertflow.workers.compute.device.grouped_product import Groups, SlotMatrix
from expertflow.workers.compute.device.memory import COPIES_OF_ROWS
from expertflow.workers.compute.experts.expert_rows import rows_by_expert
from expertflow.workers.compute.experts.routing import RoutingCollector
from torch.nn.functional import silu
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TOKENS, EXPERTS, ITEM_BYTES = 72, 8, 2
pytestmark = pytest.mark.usefixtures("one_thread")


class Peak(TorchDispatchMode):
    """Bytes of all storages that operations made and that are still there: the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self.peak_bytes = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._live:
                self._live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._live.pop, storage._cdata)
        self.peak_bytes = max(self.peak_bytes, sum(self._live.values()))
        return result


class Gated:
    """The flags of an experts module, and its gate."""

    has_gate, has_post_expert_norm = True, False

    def _apply_gate(self, inner: torch.Tensor) -> torch.Tensor:
        gate, up = inner.chunk(2, dim=-1)
        return silu(gate) * up


class Feed:
    """All experts are there; it says so, or each layer's routes are read back."""

    ready_count = EXPERTS

    def __init__(self, knows_it: bool) -> None:
        self._knows_it = knows_it
        self.is_resident: Callable[[int], bool] = lambda layer: knows_it

    def enter(self, layer: int) -> list[int] | None:
        return list(range(EXPERTS)) if self._knows_it else None

    def leave(self, routes: Any) -> None: ...

    def begin(self, layer: int, experts: list[int]) -> None:
        self.waves = lambda: iter([[(expert, expert) for expert in experts]])


def no_product(rows: torch.Tensor, weights: SlotMatrix, groups: Groups, out: torch.Tensor, first: int = 0) -> None:
    """What it gives is not looked at."""


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("width", "inner", "top_k"), [(256, 96, 4), (128, 128, 4), (64, 224, 2)])
def test_the_rows_of_a_layer_fit(width: int, inner: int, top_k: int, whole: bool) -> None:
    """Weights of routes are float32, as most routers give them."""
    tensors = {
        "gate_up_proj": SlotMatrix(torch.empty(0), 1, 0, (2 * inner, width)),
        "down_proj": SlotMatrix(torch.empty(0), 1, 0, (width, inner)),
    }
    feed: Any = Feed(whole)
    routing, device = RoutingCollector(), FakeDevice(0)
    layer = GroupedExpertsLayer(0, feed, routing, device, no_product, tensors)
    routes = torch.rand(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(1)).topk(top_k).indices
    hidden, weights = torch.zeros(TOKENS, width, dtype=torch.bfloat16), torch.ones(TOKENS, top_k)
    with torch.inference_mode(), Peak() as peak:
        layer.forward(Gated(), hidden, routes, weights)
    assert rows_by_expert(routes.numpy()).bounds[-1] > TOKENS * top_k, "no spare rows: not the worst case"
    estimate_bytes = COPIES_OF_ROWS * TOKENS * top_k * max(width, 2 * inner) * ITEM_BYTES
    assert 0.3 * estimate_bytes < peak.peak_bytes <= estimate_bytes
