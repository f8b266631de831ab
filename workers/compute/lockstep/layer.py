"""Computes the experts of a layer for rows in lockstep: an expert is brought once, and used as if each row were alone.

The kernel of a row is the one that its own number of tokens has. Torch's products get a call for each row, with the
shapes that it has alone. The native kernels give a row's bits whatever shares the call, so they take all rows at once;
only few rows with packed experts stay apart, where their number decides how they are computed.
"""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...kernels.dispatch import ExpertKernels
from ...kernels.table import NATIVE
from ..experts.expert_rows import rows_by_expert
from ..experts.layer import ExpertFeed, ExpertsLayer, gather_rows, reduce_choices, require_all, run_expert
from ..experts.routing import RoutingCollector
from ..experts.slots import ExpertWeights
from .lockstep import LayerCall, Lockstep


class LockstepLayer(ExpertsLayer):
    """ExpertsLayer that computes the rows of a `Lockstep` together; any other forward goes as in its base."""

    def __init__(
        self,
        layer: int,
        feed: ExpertFeed,
        routing: RoutingCollector,
        lockstep: Lockstep,
        kernels: ExpertKernels | None = None,
    ) -> None:
        super().__init__(layer, feed, routing, kernels)
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
        experts = np.unique(routes).tolist()
        self._feed.begin(self._layer, experts)
        if self.hinter is not None:  # as in the base: after `Miss`, and before the work that hides the loads
            self.hinter.observe(self._layer, routes, hidden)
        rows = [CallRows(module, call, self._kernels) for call in calls]
        self._run_segments(module, experts, rows)
        return [own.reduce() for own in rows]

    def _run_segments(self, module: Any, experts: list[int], calls: list[CallRows]) -> None:
        """Run every expert, in the order of arrival, on the rows of each call that chose it."""
        missing = set(experts)
        for group in self._feed.stream(experts):
            together: list[Segment] = []
            for expert, weights in group:
                missing.remove(expert)
                own = [call.segment(expert) for call in calls if expert in call.ranges]
                together += (segment for segment in own if _may_share(module, segment))
                _run_alone(module, weights, [segment for segment in own if not _may_share(module, segment)])
            self._run_together(module, dict(group), together)
        require_all(missing, self._layer)

    def _run_together(self, module: Any, weights: dict[int, ExpertWeights], segments: list[Segment]) -> None:
        """Run segments, which are in the order of their experts, by one call of the native kernels."""
        if not segments:
            return
        parts = self._parts(segments)
        ends = np.cumsum([0, *(sum(len(own.rows) for own in part) for part in parts)]).tolist()
        gathered = torch.cat([segment.rows for segment in segments])
        products, bounds = torch.empty_like(gathered), list(zip(ends, ends[1:], strict=False))
        self._kernels.run_native(module, [weights[part[0].expert] for part in parts], bounds, gathered, products)
        for segment, own in zip(segments, products.split([len(segment.rows) for segment in segments]), strict=True):
            segment.products.copy_(own)

    def _parts(self, segments: list[Segment]) -> list[list[Segment]]:
        """Return segments in runs of one expert each, apart where their number of rows decides their bits."""
        key = ((own.expert, -1 if self._kernels.may_merge(len(own.rows)) else i) for i, own in enumerate(segments))
        pairs = zip(key, segments, strict=True)
        return [[own for _, own in run] for _, run in groupby(pairs, key=lambda pair: pair[0])]


class Segment(NamedTuple):
    """Rows of one call that one expert computes."""

    expert: int
    kernel: str
    kernels: ExpertKernels
    rows: Tensor
    """[rows, width], rows of padding included where the kernel wants them."""
    products: Tensor
    """[rows, width], where the result goes."""

    def run_by_library(self, module: Any, weights: ExpertWeights) -> None:
        """Compute the segment by the library's kernel; `weights` are unpacked."""
        self.products.copy_(run_expert(module, weights, self.rows, self.kernel))

    def run_native(self, module: Any, weights: ExpertWeights) -> None:
        """Compute the segment by itself with the native kernels."""
        self.kernels.run_native(module, [weights], [(0, len(self.rows))], self.rows, self.products)


def _may_share(module: Any, segment: Segment) -> bool:
    """Return whether a segment may be computed in one call with others."""
    return segment.kernel == NATIVE and not module.has_post_expert_norm


def _run_alone(module: Any, weights: ExpertWeights, segments: list[Segment]) -> None:
    """Compute segments of one expert, each by itself; the library's kernels share what is unpacked."""
    for segment in segments:
        if segment.kernel == NATIVE:
            segment.run_native(module, weights)
    library = [segment for segment in segments if segment.kernel != NATIVE]
    parameters = library[0].kernels.unpack(weights) if library else weights
    for segment in library:
        segment.run_by_library(module, parameters)


class CallRows:
    """One row's call of a layer: its tokens' rows by expert.

    All tensors are the row's own. So shapes, strides and even the offsets in memory are those that the row has alone.
    """

    def __init__(self, module: Any, call: LayerCall, kernels: ExpertKernels) -> None:
        self._kernels, self._dtype = kernels, call.hidden.dtype
        rows = rows_by_expert(call.index.numpy(), kernels.run_rows)
        self.ranges = {expert: (rows.bounds[i], rows.bounds[i + 1]) for i, expert in enumerate(rows.experts)}
        """Expert -> its rows, from and up to."""
        self._kernel_of = dict(zip(rows.experts, map(kernels.kernel, rows.counts), strict=True))
        self._row_of_pair = torch.from_numpy(rows.row_of_pair)
        self._gathered, self._weights = gather_rows(module, call.hidden, call.weights, rows)
        self._products = torch.empty_like(self._gathered)

    def segment(self, expert: int) -> Segment:
        """Return the rows of an expert that this call chose."""
        low, high = self.ranges[expert]
        kernel = self._kernel_of[expert]
        return Segment(expert, kernel, self._kernels, self._gathered[low:high], self._products[low:high])

    def reduce(self) -> Tensor:
        """Return each token's weighted sum, [tokens, width], once every expert has run."""
        return reduce_choices(self._products, self._row_of_pair, self._weights).to(self._dtype)
