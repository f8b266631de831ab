"""The gates of a model: one small network for every MoE layer but the last."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn.functional import gelu


class Gates(torch.nn.Module):
    """hidden [tokens, width] -> bottleneck -> scores [tokens, experts] of the next MoE layer, with a straight way past
    the bottleneck: the next layer's own router is one of the gates that can be learned.

    Gate l is asked about what goes into MoE layer l. All gates are stacked: they are trained in one go.
    """

    def __init__(self, layers: int, width: int, experts: int, bottleneck: int) -> None:
        """`layers` counts the MoE layers of the model, the last included."""
        super().__init__()
        gates = layers - 1
        self.down = _matrices(gates, width, bottleneck)
        self.down_bias = torch.nn.Parameter(torch.zeros(gates, 1, bottleneck))
        self.up = _matrices(gates, bottleneck, experts)
        self.past = _matrices(gates, width, experts)
        self.bias = torch.nn.Parameter(torch.zeros(gates, 1, experts))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [gates, tokens, width] -> [gates, tokens, experts]."""
        inner = gelu(torch.baddbmm(self.down_bias, hidden, self.down))
        return torch.baddbmm(torch.baddbmm(self.bias, hidden, self.past), inner, self.up)

    @torch.inference_mode()
    def ranking(self, layer: int, hidden: torch.Tensor, depth: int) -> np.ndarray | None:
        """int64 [tokens, depth]: experts that tokens will choose in MoE layer `layer` + 1, the likeliest first.

        `hidden` [tokens, width] goes into MoE layer `layer`. None after the last layer.
        """
        if layer >= len(self.down):
            return None
        rows = hidden.float()
        inner = gelu(torch.addmm(self.down_bias[layer], rows, self.down[layer]))
        scores = torch.addmm(torch.addmm(self.bias[layer], rows, self.past[layer]), inner, self.up[layer])
        return scores.topk(depth).indices.numpy()


def _matrices(count: int, rows: int, columns: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(count, rows, columns) / math.sqrt(rows))
