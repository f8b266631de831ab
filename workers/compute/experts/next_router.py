"""Asks the next MoE layer's own router about this layer's hidden states, for any architecture.

The next MoE block is run up to its experts, which answer with what was chosen for them instead of computing. So group
limits, biases and normalisations of a router are the model's own, and none is known here. Where a block cannot be run
on what its experts get, its router is called on what this layer's router got.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

from ...model.architecture import experts_modules
from ...model.families.base import stack_of

ATTACHED = "expertflow_layer"


def _block_of(model: Any, name: str, module: Any) -> Any:
    return module if getattr(module, "is_block", False) else model.get_submodule(name.rpartition(".")[0])


class _Routed(Exception):
    """What the router chose: thrown from where the experts would begin."""

    def __init__(self, chosen: torch.Tensor) -> None:
        super().__init__()
        self.chosen = chosen


class _RouterCall(NamedTuple):
    """A router as it was last called: its name in its block, and hidden states [..., width]."""

    name: str
    states: torch.Tensor


class _Listener:
    """Stands in for the experts of a layer."""

    def real_tokens(self) -> None:
        """Nobody asks about padding."""

    def forward(self, module: Any, hidden: torch.Tensor, top_k_index: torch.Tensor, weights: torch.Tensor) -> NoReturn:
        raise _Routed(top_k_index)


class NextRouters:
    """A `HintSource`. A layer that can be asked in neither way gets no hints; `refusals` says why, by layer."""

    def __init__(self, model: Any, experts: int) -> None:
        self._experts = experts
        self._modules = [module for _, module in experts_modules(model)]
        self._blocks = [_block_of(model, name, module) for name, module in experts_modules(model)]
        self._stacks = [stack_of(name) for name, _ in experts_modules(model)]
        """Of each layer: an encoder's hidden states say nothing of what its decoder will want."""
        self._listener = _Listener()
        self._scores: torch.Tensor | None = None
        self._router: _RouterCall | None = None
        self.refusals: dict[int, str] = {}
        for block, module in zip(self._blocks, self._modules, strict=True):
            left_out = {block} if block is module else {block, *module.modules()}
            for name, child in block.named_modules():
                if child not in left_out:
                    child.register_forward_hook(partial(self._note, name))

    @property
    def refusal(self) -> str:
        """Why some layer gets no hints; empty if all do."""
        return next(iter(self.refusals.values()), "")

    def ranking(self, layer: int, hidden: torch.Tensor, depth: int) -> np.ndarray | None:
        """See `HintSource`: what the router chooses, then what it scores next."""
        if layer + 1 in self.refusals or self._stacks[layer] != self._stacks[layer + 1]:
            return None
        router, self._router = self._router, None
        try:
            return self._ask_block(layer + 1, hidden, depth)
        except Exception as error:  # noqa: BLE001 - a hint is advice: whatever is wrong with it, the step goes on
            return self._ask_instead(layer + 1, router, len(hidden), depth, error)

    def _ask_block(self, layer: int, hidden: torch.Tensor, depth: int) -> np.ndarray | None:
        self._scores = None
        try:
            with self._listening(layer):
                self._blocks[layer](hidden.unsqueeze(0))
        except _Routed as routed:
            return self._ranked(routed.chosen.reshape(len(hidden), -1), depth)
        return None

    def _ask_instead(
        self, layer: int, router: _RouterCall | None, tokens: int, depth: int, error: Exception
    ) -> np.ndarray | None:
        """The block takes more than hidden states, or its experts get others than its router: ask the router alone."""
        self._scores = None
        try:
            if router is None:
                raise error
            states = router.states.reshape(-1, router.states.shape[-1])
            # With pads among them, which of the states are tokens is not known here.
            return self._ranked(self._chosen(layer, router.name, states), depth) if len(states) == tokens else None
        except Exception as reason:  # noqa: BLE001 - as above
            self.refusals[layer] = f"{type(self._blocks[layer]).__name__}: {reason}"
            return None

    def _chosen(self, layer: int, router: str, states: torch.Tensor) -> torch.Tensor:
        """What the router of that name in a block chooses for states [tokens, width]: int64 [tokens, top-k]."""
        output = self._blocks[layer].get_submodule(router)(states)
        return next(tensor for tensor in output if _is_choice(tensor)).reshape(len(states), -1)

    @contextmanager
    def _listening(self, layer: int) -> Iterator[None]:
        module = self._modules[layer]
        speaker = getattr(module, ATTACHED)
        setattr(module, ATTACHED, self._listener)
        try:
            yield
        finally:
            setattr(module, ATTACHED, speaker)

    def _ranked(self, chosen: torch.Tensor, depth: int) -> np.ndarray:
        scores = self._scores
        if scores is None or scores.numel() != len(chosen) * self._experts:
            return chosen.cpu().numpy()
        scores = scores.reshape(len(chosen), self._experts).float()
        first = scores.max() - scores.min() + 1
        return scores.scatter_add(1, chosen, first.expand(chosen.shape)).topk(depth).indices.cpu().numpy()

    def _note(self, name: str, module: Any, inputs: Any, output: Any) -> None:
        """Whatever is as wide as there are experts, of the last module that has such: the router's scores. And a module
        that gives a choice among its outputs is a router."""
        tensors = output if isinstance(output, tuple) else (output,)
        if inputs and any(_is_choice(tensor) for tensor in tensors):
            self._router = _RouterCall(name, inputs[0])
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.shape[-1] == self._experts:
                self._scores = tensor
                break


def _is_choice(output: Any) -> bool:
    return isinstance(output, torch.Tensor) and output.dtype == torch.int64 and output.dim() >= 2
