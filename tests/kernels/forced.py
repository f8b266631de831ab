"""Tables of one forced kernel, for tests of each path on any machine that can run it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from expertflow.workers.compute.experts.layer import ExpertsLayer
from expertflow.workers.compute.experts.routing import RoutingCollector
from expertflow.workers.compute.experts.slots import ExpertWeights
from expertflow.workers.kernels.dispatch import Kernels
from expertflow.workers.kernels.native import NativeKernels
from expertflow.workers.kernels.table import NATIVE, ExpertShape, KernelTable, forced_choices
from expertflow.workers.kernels.workloads import expert_candidates
from expertflow.workers.model.step_input import StepTokens
from transformers import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

EXPERTS = 6


def forced_or_skip(kernel: str) -> NativeKernels | None:
    """Return the native kernels if `kernel` needs them; skip the test where they are missing."""
    if kernel != NATIVE:
        return None
    native = NativeKernels.open()
    if native is None:
        pytest.skip("the native kernels are missing here")
    return native


class OddFeed:
    """Experts of any width at misaligned places, together or one by one, in the order that a test asks for."""

    def __init__(self, tensors: dict[str, list[int]], dtype: torch.dtype, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.experts = [self._draw(tensors, dtype, generator) for _ in range(EXPERTS)]
        self.random: np.random.Generator | None = None
        self.together: list[Collection[int]] = []
        """The groups that were asked for, one a layer."""
        self.sizes: list[int] = []
        """Sizes of the groups that were given."""
        self._chosen: list[int] = []

    def _draw(
        self, tensors: dict[str, list[int]], dtype: torch.dtype, generator: torch.Generator
    ) -> ExpertWeights:
        weights = {}
        for name, shape in tensors.items():
            count, offset = int(np.prod(shape)), int(torch.randint(0, 40, (), generator=generator))
            memory = torch.empty(count + offset, dtype=dtype)[offset:].view(shape)
            weights[name] = memory.copy_(torch.randn(shape, generator=generator) / 4)
        return weights

    def move(self) -> None:
        """Let every weight lie at another place, as another slot would have it."""
        for own in self.experts:
            for name, weight in own.items():
                offset = 1 + int(np.random.default_rng(weight.numel()).integers(0, 33))
                memory = torch.empty(weight.numel() + offset, dtype=weight.dtype)[offset:].view(weight.shape)
                own[name] = memory.copy_(weight)

    def begin(self, layer: int, experts: list[int]) -> None:
        self._chosen = experts

    def stack(self) -> ExpertWeights | None:
        return None

    def finish(self) -> None: ...

    def stream(self, together: Collection[int] = ()) -> Iterator[list[tuple[int, ExpertWeights]]]:
        self.together.append(together)
        order = self._chosen if self.random is None else self.random.permutation(self._chosen).tolist()
        while order:
            limit = 1 if self.random is None else int(self.random.integers(1, EXPERTS + 1))
            group = [expert for expert in order if expert in together][:limit] if order[0] in together else order[:1]
            order = [expert for expert in order if expert not in group]
            self.sizes.append(len(group))
            yield [(expert, self.experts[expert]) for expert in group]


class OddLayer:
    """A layer of experts whose kernel is forced."""

    def __init__(
        self, kernel: str, dtype: torch.dtype, width: int, inner: int, activation: str = "silu"
    ) -> None:
        native = forced_or_skip(kernel)
        config = OlmoeConfig(hidden_size=width, intermediate_size=inner, num_experts=EXPERTS, num_experts_per_tok=2)
        config.hidden_act = activation
        self.module: Any = OlmoeExperts(config)
        tensors = {"gate_up_proj": [2 * inner, width], "down_proj": [width, inner]}
        name = str(dtype).removeprefix("torch.")
        known = type(self.module.act_fn).__name__
        shape = ExpertShape(
            width=width, inner=inner, dtype=name, gated=True, transposed=False, bias=False, activation=known
        )
        self.choices = forced_choices(shape, kernel, expert_candidates(shape, self.module, native))
        self._isa, self._shape, self._tensors = "" if native is None else native.isa, shape, tensors
        self.feed, self.routing = OddFeed(tensors, dtype), RoutingCollector()
        self._width, self._dtype = width, dtype
        self.bind()

    def bind(self) -> None:
        """Take over what `choices` holds now."""
        table = KernelTable(isa=self._isa, choices={self._shape.key: self.choices})
        self.kernels = Kernels(table).expert(self.module, self._tensors, self._shape.dtype)
        self._layer = ExpertsLayer(0, self.feed, self.routing, self.kernels)

    def run(self, counts: list[int], like: torch.dtype | None = None) -> torch.Tensor:
        """Run `counts[i]` tokens through expert i alone: [tokens, width]; with inputs rounded to the dtype `like`."""
        routes = torch.tensor([[expert] for expert, count in enumerate(counts) for _ in range(count)])
        generator = torch.Generator().manual_seed(7)
        hidden = torch.randn(len(routes), self._width, generator=generator).to(like or self._dtype).to(self._dtype)
        order = torch.randperm(len(routes), generator=generator)
        self.routing.begin(_all_real(len(routes)))
        weights = torch.ones(len(routes), 1, dtype=self._dtype)
        return self._layer.forward(self.module, hidden, routes[order], weights)


def _all_real(count: int) -> StepTokens:
    return StepTokens(None, list(range(count)), [0] * count, list(range(count)))
