"""The routers of a model while it trains: their scores, and the loss that keeps experts evenly used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def router_modules(model: nn.Module) -> list[nn.Module]:
    """Return the routers in the order of the layers; a layer may have one for text and one for images."""
    return [module for name, module in model.named_modules() if name.endswith(".gate") and hasattr(module, "top_k")]


class RouterRecorder:
    """Keeps what each router said in the last forward: logits float [tokens, experts] and choices [tokens, k]."""

    def __init__(self, model: nn.Module) -> None:
        self._routers = router_modules(model)
        self.inputs: list[torch.Tensor] = []
        """Hidden states [tokens, width] that each router saw."""
        self.logits: list[torch.Tensor] = []
        self.chosen: list[torch.Tensor] = []

    @contextmanager
    def recording(self) -> Iterator[RouterRecorder]:
        """Record while the context is open, one entry a router that ran."""
        self.inputs, self.logits, self.chosen = [], [], []
        hooks = [router.register_forward_hook(self._keep) for router in self._routers]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _keep(self, router: nn.Module, inputs: Any, output: Any) -> None:
        self.inputs.append(inputs[0].reshape(-1, inputs[0].shape[-1]))
        self.logits.append(output[0])
        self.chosen.append(output[2])


def router_scores(router_logits: torch.Tensor, sigmoid: bool) -> torch.Tensor:
    """Return scores [tokens, experts] that add up to one, as the router's kind normalises them."""
    if not sigmoid:
        return router_logits.float().softmax(-1)
    scores = router_logits.float().sigmoid()
    return scores / scores.sum(-1, keepdim=True)


def balance_loss(recorder: RouterRecorder, sigmoid: bool) -> torch.Tensor:
    """Return Switch's balancing loss, averaged over routers; 1.0 when every router uses its experts evenly."""
    losses = []
    for logits, chosen in zip(recorder.logits, recorder.chosen, strict=True):
        experts = logits.shape[-1]
        used_share = torch.bincount(chosen.flatten(), minlength=experts) / max(1, chosen.numel())
        losses.append(experts * (used_share * router_scores(logits, sigmoid).mean(0)).sum())
    return torch.stack(losses).mean()
