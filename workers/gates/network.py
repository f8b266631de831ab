"""The gates of a model: one small network for every MoE layer but the last."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn.functional import gelu


class Gates(torch.nn.Module):
    """Networks hidden [tokens, width] -> bottleneck -> scores [tokens, experts] of the next MoE layer.

    Gate l takes the input of MoE layer l. All gates are stacked, so that they train together.
    """

    def __init__(self, layers: int, width: int, experts: int, bottleneck: int) -> None:
        """Draw random weights. `layers` counts the MoE layers of the model, the last included."""
        super().__init__()
        gates = layers - 1
        self.down = _matrices(gates, width, bottleneck)
        self.down_bias = torch.nn.Parameter(torch.zeros(gates, 1, bottleneck))
        self.up = _matrices(gates, bottleneck, experts)
        self.up_bias = torch.nn.Parameter(torch.zeros(gates, 1, experts))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 [gates, tokens, experts], logits, for `hidden` float32 [gates, tokens, width]."""
        inner = gelu(torch.baddbmm(self.down_bias, hidden, self.down))
        return torch.baddbmm(self.up_bias, inner, self.up)

    @torch.inference_mode()
    def ranking(self, layer: int, hidden: torch.Tensor, depth: int) -> np.ndarray | None:
        """Return int64 [tokens, depth]: the likeliest experts of MoE layer `layer` + 1 for each token, best first.

        `hidden` [tokens, width] is the input of MoE layer `layer`. None after the last layer, or for another width.
        """
        if layer >= len(self.down) or hidden.shape[1] != self.down.shape[1]:
            return None
        inner = gelu(torch.addmm(self.down_bias[layer], hidden.float(), self.down[layer]))
        scores = torch.addmm(self.up_bias[layer], inner, self.up[layer])
        return scores.topk(depth).indices.cpu().numpy()


def _matrices(count: int, rows: int, columns: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(count, rows, columns) / math.sqrt(rows))
