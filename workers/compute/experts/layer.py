"""The routed experts of one layer, computed over slots; registered with transformers' experts interface.

All tokens of an expert go through one call, by the kernel that its number of rows has in the kernel table. Each (token,
choice) product has its own row, and rows are reduced once, in top-k order. So the result does not depend on the order
in which experts arrive (I1a).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

import torch

from ....errors import EngineError
from ...kernels.dispatch import ExpertKernels
from ...kernels.experts import run_by_library, run_stack
from ...kernels.products import may_stack
from ...kernels.table import LEFT_FACTOR, NATIVE
from ...model.families.base import OutsideExperts
from .expert_rows import ExpertRows, rows_by_expert
from .hints import Hinter
from .routing import RoutingCollector
from .slots import ExpertWeights

Group = Sequence[tuple[int, ExpertWeights]]
"""Experts of a layer and their weights, to be computed together."""


class ExpertFeed(Protocol):
    """Brings the experts of a layer, in the order of arrival; weights are valid until the next group is asked for."""

    def begin(self, layer: int, experts: list[int]) -> None:
        """Begin a layer that chose these experts: ask for the missing ones."""
        ...

    def stack(self) -> ExpertWeights | None:
        """Return all experts of the layer, [experts, ...], if they are adjacent and none is missing."""
        ...

    def finish(self) -> None:
        """End a layer that was computed from `stack`."""
        ...

    def stream(self, together: Collection[int] = ()) -> Iterable[Group]:
        """Yield the chosen experts of the layer; those that are in `together` share a group where both are there."""
        ...


class ExpertsLayer:
    """Computes an experts module from slots; attached to the module in place of its weights."""

    def __init__(
        self, layer: int, feed: ExpertFeed, routing: RoutingCollector, kernels: ExpertKernels | None = None
    ) -> None:
        """Compute layer number `layer` by `kernels`; without them the rule chooses."""
        self._layer, self._feed, self._routing = layer, feed, routing
        self._kernels = kernels or ExpertKernels()
        self.hinter: Hinter | None = None

    def forward(
        self, module: Any, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Compute hidden [positions, width] for routes [positions, top-k] and their weights: [positions, width].

        Pads give zeros. Raises EngineError if an expert never arrives.
        """
        tokens = self._routing.token_indices(self._layer)
        if tokens is None:
            return self._compute(module, hidden, top_k_index, top_k_weights)
        out = torch.zeros_like(hidden)
        out[tokens] = self._compute(module, hidden[tokens], top_k_index[tokens], top_k_weights[tokens])
        return out

    def real_tokens(self) -> torch.Tensor | None:
        """Return which positions of the current forward are tokens, bool [positions]; None if all are."""
        return self._routing.tokens_of(self._layer).real

    def _compute(self, module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        routes = index.numpy()
        self._routing.add(self._layer, routes, hidden, weights)
        rows = rows_by_expert(routes, self._kernels.run_rows)
        self._feed.begin(self._layer, rows.experts)
        if self.hinter is not None:  # after `Miss`, which is more urgent, and before the work that hides the loads
            self.hinter.observe(self._layer, routes, hidden)
        gathered, weights = gather_rows(module, hidden, weights, rows)
        products = self._run(module, gathered, rows)
        return reduce_choices(products, torch.from_numpy(rows.row_of_pair), weights).to(hidden.dtype)

    def _run(self, module: Any, gathered: torch.Tensor, rows: ExpertRows) -> torch.Tensor:
        kernels = [self._kernels.kernel(count) for count in rows.counts]
        stack = self._feed.stack() if is_plain(module) and all(kernel == LEFT_FACTOR for kernel in kernels) else None
        if stack is None or not all(may_stack(tensor, rows.max_rows) for tensor in stack.values()):
            return self._run_groups(module, gathered, rows, dict(zip(rows.experts, kernels, strict=True)))
        ends = torch.from_numpy(rows.ends(len(next(iter(stack.values())))))
        products = run_stack(module, stack, gathered, ends)
        self._feed.finish()
        return products

    def _run_groups(
        self, module: Any, gathered: torch.Tensor, rows: ExpertRows, kernels: dict[int, str]
    ) -> torch.Tensor:
        """Compute the experts as they come; those of the native kernel together in one call."""
        products = torch.empty_like(gathered)
        bounds = {expert: (rows.bounds[i], rows.bounds[i + 1]) for i, expert in enumerate(rows.experts)}
        native = {expert for expert, kernel in kernels.items() if kernel == NATIVE}
        for group in self._feed.stream(native):
            own = [bounds.pop(expert) for expert, _ in group]
            if native and group[0][0] in native:
                self._kernels.run_native(module, [weights for _, weights in group], own, gathered, products)
                continue
            for (expert, weights), (low, high) in zip(group, own, strict=True):
                own_weights = self._kernels.unpack(weights)
                products[low:high] = run_expert(module, own_weights, gathered[low:high], kernels[expert])
        require_all(bounds, self._layer)
        return products


def gather_rows(
    module: Any, hidden: torch.Tensor, weights: torch.Tensor, rows: ExpertRows
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the experts' input [rows, width] from `hidden` [tokens, width].

    Returns also the weights [tokens, top-k] of the products: ones if `weights` of that shape multiply the input.
    """
    gathered = hidden.index_select(0, torch.from_numpy(rows.pair_of_row // weights.shape[1]))
    if not weighs_input(module):
        return gathered, weights
    gathered *= weights.reshape(-1, 1)[torch.from_numpy(rows.pair_of_row)]
    return gathered, torch.ones_like(weights)


def require_all(missing: Collection[int], layer: int) -> None:
    """Raise EngineError if experts never arrived.

    Their rows hold earlier contents of the memory, perhaps the right products of the last step.
    """
    if missing:
        raise EngineError(f"experts {sorted(missing)} never arrived", f"MoE layer {layer}", "Report this as a bug")


def reduce_choices(products: torch.Tensor, row_of_pair: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weigh each token's products and sum them in top-k order: [rows, width] -> [tokens, width].

    `row_of_pair` int64 [tokens * top-k] is the row of each (token, choice); `weights` is [tokens, top-k].
    """
    tokens, top_k = weights.shape
    weighted = products.index_select(0, row_of_pair) * weights.reshape(-1, 1)
    return weighted.view(tokens, top_k, products.shape[1]).sum(dim=1)


def run_expert(module: Any, weights: ExpertWeights, rows: torch.Tensor, kernel: str = "") -> torch.Tensor:
    """Compute one expert on its rows [n, width], by the flags that transformers sets on the experts module: [n, width].

    `kernel`: one of the library's; without a name the rule decides. An adapter's experts have products of their own.
    """
    if isinstance(module, OutsideExperts):
        return module.run_expert(weights, rows)
    return run_by_library(module, weights, rows, kernel)


def weighs_input(module: Any) -> bool:
    """Return whether a route's weight multiplies the expert's input instead of its output."""
    return isinstance(module, OutsideExperts) and module.weighs_input


def is_plain(module: Any) -> bool:
    """Return whether an expert is two products with its weights as stored, without bias, and row-wise operations."""
    return not (isinstance(module, OutsideExperts) or module.is_transposed or module.has_bias)


def dispatch(module: Any, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    """Run the layer attached to the module; this function is registered with transformers.

    Shapes as in `ExpertsLayer.forward`: hidden [positions, width], routes and weights [positions, top-k].
    """
    return module.expertflow_layer.forward(module, hidden, top_k_index, top_k_weights)
