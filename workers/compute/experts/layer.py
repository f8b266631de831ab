"""The routed experts of one layer, computed over slots; registered with transformers' experts interface.

All tokens of an expert go through one call. Each (token, choice) product has its own row, and rows are reduced once, in
top-k order. So the result does not depend on the order in which experts arrive (I1a).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol

import torch

from ....errors import EngineError
from ...model.families.base import OutsideExperts
from .expert_rows import ExpertRows, rows_by_expert
from .hints import Hinter
from .projection import may_stack, project, project_stack
from .routing import RoutingCollector
from .slots import ExpertWeights


class ExpertFeed(Protocol):
    """Brings the experts of a layer, in the order of arrival; weights are valid until the next is asked for."""

    def begin(self, layer: int, experts: list[int]) -> None:
        """Begin a layer that chose these experts: ask for the missing ones."""
        ...

    def stack(self) -> ExpertWeights | None:
        """Return all experts of the layer, [experts, ...], if they are adjacent and none is missing."""
        ...

    def finish(self) -> None:
        """End a layer that was computed from `stack`."""
        ...

    def stream(self) -> Iterable[tuple[int, ExpertWeights]]:
        """Yield the chosen experts of the layer."""
        ...


class ExpertsLayer:
    """Computes an experts module from slots; attached to the module in place of its weights."""

    def __init__(self, layer: int, feed: ExpertFeed, routing: RoutingCollector) -> None:
        self._layer, self._feed, self._routing = layer, feed, routing
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
        rows = rows_by_expert(routes)
        self._feed.begin(self._layer, rows.experts)
        if self.hinter is not None:  # after `Miss`, which is more urgent, and before the work that hides the loads
            self.hinter.observe(self._layer, routes, hidden)
        gathered, weights = gather_rows(module, hidden, weights, rows)
        products = self._run(module, gathered, rows)
        return reduce_choices(products, torch.from_numpy(rows.row_of_pair), weights).to(hidden.dtype)

    def _run(self, module: Any, gathered: torch.Tensor, rows: ExpertRows) -> torch.Tensor:
        stack = self._feed.stack() if is_plain(module) else None
        if stack is None or not all(may_stack(tensor, rows.max_rows) for tensor in stack.values()):
            return self._run_each(module, gathered, rows)
        ends = torch.from_numpy(rows.ends(len(next(iter(stack.values())))))
        products = run_expert(module, stack, gathered, ends)
        self._feed.finish()
        return products

    def _run_each(self, module: Any, gathered: torch.Tensor, rows: ExpertRows) -> torch.Tensor:
        products = torch.empty_like(gathered)
        ranges = {expert: (rows.bounds[i], rows.bounds[i + 1]) for i, expert in enumerate(rows.experts)}
        for expert, own in self._feed.stream():
            low, high = ranges.pop(expert)
            products[low:high] = run_expert(module, own, gathered[low:high])
        require_all(ranges, self._layer)
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


def run_expert(
    module: Any, weights: ExpertWeights, rows: torch.Tensor, ends: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute one expert on its rows [n, width], by the flags that transformers sets on the experts module.

    With `ends`, int32 [experts], compute all experts of a module that `is_plain`, each on the rows up to its end.
    """
    if isinstance(module, OutsideExperts):
        return module.run_expert(weights, rows)
    inner = _project(module, weights, first_projection(module), rows, ends)
    return normalize(module, _project(module, weights, "down_proj", activate(module, inner), ends))


def first_projection(module: Any) -> str:
    """Return the name of the first projection; `down_proj` is the second."""
    return "gate_up_proj" if module.has_gate else "up_proj"


def activate(module: Any, inner: torch.Tensor) -> torch.Tensor:
    """Apply the activation between the two projections, row by row; returns [n, inner width].

    `inner` is [n, inner width], or of twice that width where there is a gate.
    """
    return module._apply_gate(inner) if module.has_gate else module.act_fn(inner)


def normalize(module: Any, products: torch.Tensor) -> torch.Tensor:
    """Apply the norm after the second projection, if there is one, to `products` [n, width], row by row."""
    return module.post_expert_norm(products) if module.has_post_expert_norm else products


def weighs_input(module: Any) -> bool:
    """Return whether a route's weight multiplies the expert's input instead of its output."""
    return isinstance(module, OutsideExperts) and module.weighs_input


def is_plain(module: Any) -> bool:
    """Return whether an expert is two products with its weights as stored, without bias, and row-wise operations."""
    return not (isinstance(module, OutsideExperts) or module.is_transposed or module.has_bias)


def _project(
    module: Any, weights: ExpertWeights, name: str, rows: torch.Tensor, ends: torch.Tensor | None
) -> torch.Tensor:
    if ends is not None:
        return project_stack(rows, weights[name], ends)
    weight = weights[name].t() if module.is_transposed else weights[name]
    return project(rows, weight, weights[f"{name}_bias"] if module.has_bias else None)


def dispatch(module: Any, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    """Run the layer attached to the module; this function is registered with transformers.

    Shapes as in `ExpertsLayer.forward`: hidden [positions, width], routes and weights [positions, top-k].
    """
    return module.expertflow_layer.forward(module, hidden, top_k_index, top_k_weights)
