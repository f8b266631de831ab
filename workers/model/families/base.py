"""What a family outside transformers' experts interface must say of its experts to be run over slots."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

ENCODER, DECODER = "encoder", "decoder"


class OutsideExperts(nn.Module):
    """Mixed into a library's experts module, in front of its class.

    From then on the module is found and called as those inside the interface: hidden states, routes and their weights
    go to the function that `config._experts_implementation` names.
    """

    config: Any
    weighs_input = False
    """Whether a route's weight multiplies what goes into its expert, not what comes out."""
    is_block = False
    """Whether the module is the whole MoE block, router included."""

    @abstractmethod
    def expert_parameters(self) -> dict[str, torch.Tensor]:
        """The parameters of the experts, each as [experts, ...], by their names in this module."""

    def expert_kinds(self) -> list[list[str]]:
        """The names of `expert_parameters` by kinds of experts that differ in size and have parameters of their own:
        those of the first kind are numbered first. Equally many of each."""
        return [list(self.expert_parameters())]

    def stored_separately(self) -> dict[str, list[str]]:
        """For each name of `expert_parameters` whose experts are parameters of their own: their names, in order."""
        return {}

    def parameter_names(self) -> list[str]:
        """Of all parameters of the experts, as they are called in this module."""
        apart = self.stored_separately()
        return [each for name in self.expert_parameters() for each in apart.get(name, [name])]

    @abstractmethod
    def run_expert(self, weights: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """One expert, given its slice of each parameter, on its rows [n, width]."""

    def run_routed(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """hidden [tokens, width], routes [tokens, k] and their weights -> [tokens, width]."""
        return ALL_EXPERTS_FUNCTIONS[self.config._experts_implementation](self, hidden, index, weights)


def stack_of(path: str) -> str:
    """ENCODER or DECODER, as the first such part of the module's path says; empty for other models."""
    return next((part for part in path.split(".") if part in (ENCODER, DECODER)), "")
