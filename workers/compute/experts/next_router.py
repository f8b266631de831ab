"""Asks the next MoE layer's own router about this layer's hidden states, for any architecture.

The next MoE block is run up to its experts, where a stand-in captures the routes instead of computing. So the model's
own group limits, biases and normalisations of a router apply, and this module knows none of them. If a block cannot run
on its experts' input, its router is called on the input that this layer's router had.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

from ...model.architecture import experts_modules
from ...model.families.base import stack_of

LAYER_ATTRIBUTE = "expertflow_layer"


def _block_of(model: Any, name: str, module: Any) -> Any:
    return module if getattr(module, "is_block", False) else model.get_submodule(name.rpartition(".")[0])


class _Routed(Exception):
    """The router's choice, int64 [..., top-k], raised where the experts would begin."""

    def __init__(self, chosen: torch.Tensor) -> None:
        super().__init__()
        self.chosen = chosen


class _RouterCall(NamedTuple):
    """The last call of a router: its name in its block, and hidden states [..., width]."""

    name: str
    states: torch.Tensor


class _CapturingLayer:
    """Stands in for the experts of a layer and captures their routes."""

    def real_tokens(self) -> None:
        """Return None: no position is a pad."""

    def forward(self, module: Any, hidden: torch.Tensor, top_k_index: torch.Tensor, weights: torch.Tensor) -> NoReturn:
        """Raise the routes `top_k_index`, int64 [tokens, top-k], to whoever asked the block."""
        raise _Routed(top_k_index)


class NextRouters:
    """A `HintSource`. A layer that can be asked in neither way gets no hints; `refusals` gives the reason, by layer."""

    def __init__(self, model: Any, experts: int) -> None:
        self._experts = experts
        self._modules = [module for _, module in experts_modules(model)]
        self._blocks = [_block_of(model, name, module) for name, module in experts_modules(model)]
        self._stacks = [stack_of(name) for name, _ in experts_modules(model)]
        """Encoder or decoder, by layer: hidden states of one predict nothing of the other."""
        self._capturing = _CapturingLayer()
        self._scores: torch.Tensor | None = None
        self._router: _RouterCall | None = None
        self.refusals: dict[int, str] = {}
        for block, module in zip(self._blocks, self._modules, strict=True):
            excluded = {block} if block is module else {block, *module.modules()}
            for name, child in block.named_modules():
                if child not in excluded:
                    child.register_forward_hook(partial(self._record, name))

    def ranking(self, layer: int, hidden: torch.Tensor, depth: int) -> np.ndarray | None:
        """Implement `HintSource`: int64 [tokens, depth] for `hidden` [tokens, width].

        The experts that the next router chooses come first, then those that it scores next.
        """
        if layer + 1 in self.refusals or self._stacks[layer] != self._stacks[layer + 1]:
            return None
        router, self._router = self._router, None
        try:
            return self._ask_block(layer + 1, hidden, depth)
        except Exception as error:  # noqa: BLE001 - a hint is optional: whatever fails here, the step goes on
            return self._ask_router(layer + 1, router, len(hidden), depth, error)

    def _ask_block(self, layer: int, hidden: torch.Tensor, depth: int) -> np.ndarray | None:
        self._scores = None
        try:
            with self._capture(layer):
                self._blocks[layer](hidden.unsqueeze(0))
        except _Routed as routed:
            return self._rank(routed.chosen.reshape(len(hidden), -1), depth)
        return None

    def _ask_router(
        self, layer: int, router: _RouterCall | None, tokens: int, depth: int, error: Exception
    ) -> np.ndarray | None:
        """Ask the router alone: its block takes more than hidden states, or its experts get another input."""
        self._scores = None
        try:
            if router is None:
                raise error
            states = router.states.reshape(-1, router.states.shape[-1])
            # With pads among the states, it is unknown which of them are tokens.
            return self._rank(self._choose(layer, router.name, states), depth) if len(states) == tokens else None
        except Exception as reason:  # noqa: BLE001 - as above
            self._refuse(layer, f"{type(self._blocks[layer]).__name__}: {reason}")
            return None

    def _refuse(self, layer: int, reason: str) -> None:
        """Give up hints for a layer; log the first layer only, since the others mostly have the same reason."""
        if not self.refusals:
            words = "MoE layer %d, and perhaps others, gets no hints, which is slower: %s"
            logging.getLogger(__name__).warning(words, layer, reason)
        self.refusals[layer] = reason

    def _choose(self, layer: int, router: str, states: torch.Tensor) -> torch.Tensor:
        """Call a block's router of this name on states [tokens, width]; return its choice, int64 [tokens, top-k]."""
        output = self._blocks[layer].get_submodule(router)(states)
        return next(tensor for tensor in output if _is_choice(tensor)).reshape(len(states), -1)

    @contextmanager
    def _capture(self, layer: int) -> Iterator[None]:
        module = self._modules[layer]
        attached = getattr(module, LAYER_ATTRIBUTE)
        setattr(module, LAYER_ATTRIBUTE, self._capturing)
        try:
            yield
        finally:
            setattr(module, LAYER_ATTRIBUTE, attached)

    def _rank(self, chosen: torch.Tensor, depth: int) -> np.ndarray:
        """Return int64 [tokens, depth]: the chosen experts [tokens, top-k] first, then others by score.

        Without scores of these tokens, return the chosen experts alone.
        """
        scores = self._scores
        if scores is None or scores.numel() != len(chosen) * self._experts:
            return chosen.cpu().numpy()
        scores = scores.reshape(len(chosen), self._experts).float()
        bonus = scores.max() - scores.min() + 1
        return scores.scatter_add(1, chosen, bonus.expand(chosen.shape)).topk(depth).indices.cpu().numpy()

    def _record(self, name: str, module: Any, inputs: Any, output: Any) -> None:
        """Record the router's scores and call: a forward hook of every module in a block.

        The last output whose width is the number of experts counts as the scores. A module with a choice among its
        outputs counts as the router.
        """
        tensors = output if isinstance(output, tuple) else (output,)
        if inputs and any(_is_choice(tensor) for tensor in tensors):
            self._router = _RouterCall(name, inputs[0])
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.shape[-1] == self._experts:
                self._scores = tensor
                break


def _is_choice(output: Any) -> bool:
    return isinstance(output, torch.Tensor) and output.dtype == torch.int64 and output.dim() >= 2
