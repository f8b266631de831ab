"""Interface of adapters: what a family outside transformers' experts interface must define to run over slots."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

ENCODER, DECODER = "encoder", "decoder"


class OutsideExperts(nn.Module):
    """Base of adapters: `registry.adapt` puts one before the class of a library's experts module.

    The module is then found and called as those inside the interface: hidden states, routes and their weights go to the
    function that `config._experts_implementation` names.
    """

    config: Any
    weighs_input = False
    """True if a route's weight multiplies the input of its expert, not the output."""
    is_block = False
    """True if the module is the whole MoE block, router included."""

    @abstractmethod
    def expert_parameters(self) -> dict[str, torch.Tensor]:
        """Return the parameters of the experts, each as [experts, ...], by their names in this module."""

    def expert_kinds(self) -> list[list[str]]:
        """Return the names of `expert_parameters` for each kind of expert; kinds differ in size and in parameters.

        Each kind has equally many experts; those of the first kind are numbered first.
        """
        return [list(self.expert_parameters())]

    def stored_separately(self) -> dict[str, list[str]]:
        """Return the names of separate parameters, one an expert, for each of `expert_parameters` that is stored so."""
        return {}

    def parameter_names(self) -> list[str]:
        """Return the names of all parameters of the experts in this module."""
        separate = self.stored_separately()
        return [own for name in self.expert_parameters() for own in separate.get(name, [name])]

    @abstractmethod
    def run_expert(self, weights: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """Compute one expert, given its slice of each parameter, on its rows [n, width]."""

    def run_routed(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Run the experts of `index` [tokens, k], weighted by `weights` [tokens, k], on `hidden` [tokens, width]."""
        return ALL_EXPERTS_FUNCTIONS[self.config._experts_implementation](self, hidden, index, weights)


def stack_of(path: str) -> str:
    """Return ENCODER or DECODER, by the first such part of a module's path; empty for other models."""
    return next((part for part in path.split(".") if part in (ENCODER, DECODER)), "")
