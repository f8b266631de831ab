"""The routed experts of one layer, computed over slots; registered with transformers' experts interface.

All tokens of an expert go through one call, each (token, choice) product goes to its own row and rows are reduced once
in top-k order: the result does not depend on which experts came late (I1a).
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
    """Brings the experts of a layer, in whatever order they come; weights are valid until the next is asked for."""

    def begin(self, layer: int, experts: list[int]) -> None:
        """Ask for what is missing."""
        ...

    def stack(self) -> ExpertWeights | None:
        """All experts of the layer that was begun, [experts, ...], if they lie side by side and none is missing."""
        ...

    def done(self) -> None:
        """What `stack` gave is not read any more."""
        ...

    def stream(self) -> Iterable[tuple[int, ExpertWeights]]:
        """All experts of the layer that was begun."""
        ...


class ExpertsLayer:
    """Attached to an experts module in place of its weights."""

    def __init__(self, layer: int, feed: ExpertFeed, routing: RoutingCollector) -> None:
        self._layer, self._feed, self._routing = layer, feed, routing
        self.hinter: Hinter | None = None

    def forward(
        self, module: Any, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden [tokens, width], routes [tokens, k] and their weights -> [tokens, width]; pads give zeros."""
        real = self._routing.places(self._layer)
        if real is None:
            return self._compute(module, hidden, top_k_index, top_k_weights)
        out = torch.zeros_like(hidden)
        out[real] = self._compute(module, hidden[real], top_k_index[real], top_k_weights[real])
        return out

    def real_tokens(self) -> torch.Tensor | None:
        """bool [positions] of the forward that runs: which are tokens; None if all are."""
        return self._routing.tokens_of(self._layer).real

    def _compute(self, module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        routes = index.numpy()
        self._routing.add(self._layer, routes, hidden, weights)
        rows = rows_by_expert(routes)
        self._feed.begin(self._layer, rows.experts)
        if self.hinter is not None:  # after the need, which is more urgent, and before the work that hides the loads
            self.hinter.observe(self._layer, routes, hidden)
        gathered = hidden.index_select(0, torch.from_numpy(rows.pairs // routes.shape[1]))
        if weighs_input(module):
            gathered *= weights.reshape(-1, 1)[torch.from_numpy(rows.pairs)]
            weights = torch.ones_like(weights)
        products = self._run(module, gathered, rows)
        return reduce_choices(products, torch.from_numpy(rows.places), weights).to(hidden.dtype)

    def _run(self, module: Any, gathered: torch.Tensor, rows: ExpertRows) -> torch.Tensor:
        stack = self._feed.stack() if is_plain(module) else None
        if stack is None or not all(may_stack(each, rows.most) for each in stack.values()):
            return self._run_each(module, gathered, rows)
        ends = torch.from_numpy(rows.ends(len(next(iter(stack.values())))))
        products = run_expert(module, stack, gathered, ends)
        self._feed.done()
        return products

    def _run_each(self, module: Any, gathered: torch.Tensor, rows: ExpertRows) -> torch.Tensor:
        products = torch.empty_like(gathered)
        ranges = {expert: (rows.bounds[i], rows.bounds[i + 1]) for i, expert in enumerate(rows.experts)}
        for expert, own in self._feed.stream():
            low, high = ranges.pop(expert)
            products[low:high] = run_expert(module, own, gathered[low:high])
        require_all(ranges, self._layer)
        return products


def require_all(missing: Collection[int], layer: int) -> None:
    """Raise EngineError if experts never came.

    Their rows are whatever the memory held before, perhaps the right products of the last step.
    """
    if missing:
        raise EngineError(f"experts {sorted(missing)} never came", f"MoE layer {layer}", "Report this as a bug")


def reduce_choices(products: torch.Tensor, places: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[rows, width] -> [tokens, width]: each token's products weighed and summed in top-k order.

    `places` int64 [pairs]: the row of each (token, choice)."""
    tokens, top_k = weights.shape
    weighted = products.index_select(0, places) * weights.reshape(-1, 1)
    return weighted.view(tokens, top_k, products.shape[1]).sum(dim=1)


def run_expert(
    module: Any, weights: ExpertWeights, rows: torch.Tensor, ends: torch.Tensor | None = None
) -> torch.Tensor:
    """One expert on its rows [n, width], by the flags that transformers sets on the experts module.

    With `ends` (of a module that `is_plain`): all experts, each on the rows up to its end.
    """
    if isinstance(module, OutsideExperts):
        return module.run_expert(weights, rows)
    inner = _project(module, weights, first_projection(module), rows, ends)
    return normalize(module, _project(module, weights, "down_proj", activate(module, inner), ends))


def first_projection(module: Any) -> str:
    """The parameter that rows meet first; `down_proj` is the other."""
    return "gate_up_proj" if module.has_gate else "up_proj"


def activate(module: Any, inner: torch.Tensor) -> torch.Tensor:
    """What is between the two projections, row by row."""
    return module._apply_gate(inner) if module.has_gate else module.act_fn(inner)


def normalize(module: Any, products: torch.Tensor) -> torch.Tensor:
    """What comes after them, row by row."""
    return module.post_expert_norm(products) if module.has_post_expert_norm else products


def weighs_input(module: Any) -> bool:
    """Whether the weight of a route multiplies what goes into the expert."""
    return isinstance(module, OutsideExperts) and module.weighs_input


def is_plain(module: Any) -> bool:
    """Whether an expert is products with its weights, as they lie, and what is done to single rows."""
    return not (isinstance(module, OutsideExperts) or module.is_transposed or module.has_bias)


def _project(
    module: Any, weights: ExpertWeights, name: str, rows: torch.Tensor, ends: torch.Tensor | None
) -> torch.Tensor:
    if ends is not None:
        return project_stack(rows, weights[name], ends)
    weight = weights[name].t() if module.is_transposed else weights[name]
    return project(rows, weight, weights[f"{name}_bias"] if module.has_bias else None)


def dispatch(module: Any, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    """The function registered with transformers: hands over to the layer that was attached to the module."""
    return module.expertflow_layer.forward(module, hidden, top_k_index, top_k_weights)
