"""The skeleton's linear layers, run by the same kernels as experts: a decode step is bound by reading weights."""

from __future__ import annotations

import torch
from torch import nn

from .experts.projection import is_streamed, project


class StreamedLinear(nn.Linear):
    """Linear layers of the library become this class in place; their parameters stay what they are."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name is the library's
        rows = input.reshape(-1, self.in_features)
        if not is_streamed(self.weight, len(rows)):
            return super().forward(input)
        out = project(rows, self.weight, self.bias)
        return out.contiguous().view(*input.shape[:-1], self.out_features)


def stream_linears(model: nn.Module) -> None:
    """Every plain linear layer of `model`, and none of a class of its own, which may do more."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = StreamedLinear
