"""Growth between windows: one expert is added to each side layer, and at most the least used one is removed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .side import SideExpert, SideLayer

THRESHOLD = 0.1
"""Share of the outputs' norm below which the least used expert of a layer goes (tau)."""


def expand(layer: SideLayer) -> None:
    """Freeze all experts, and append one that begins as their mean. The router gets one new row; all rows train."""
    for parameter in layer.experts.parameters():
        parameter.requires_grad_(False)
    fresh = SideExpert(layer.width, layer.bottleneck)
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            parameter.copy_(torch.stack([expert.get_parameter(name) for expert in layer.experts]).mean(0))
    layer.experts.append(fresh)
    new_row = nn.Linear(layer.width, 1, bias=False).weight.detach()
    _replace_router(layer, torch.cat([layer.router.weight.detach(), new_row]))


def prune(layer: SideLayer, shares: Tensor, threshold: float = THRESHOLD) -> int | None:
    """Remove the expert of least share, float [experts], with its router row, if it is below the threshold.

    Returns its number, or None. The last expert stays.
    """
    least = int(shares.argmin())
    if len(layer.experts) < 2 or float(shares[least]) >= threshold:
        return None
    layer.experts = nn.ModuleList(expert for number, expert in enumerate(layer.experts) if number != least)
    rows = [row for row in range(layer.router.out_features) if row != least + 1]
    _replace_router(layer, layer.router.weight.detach()[rows])
    return least


def _replace_router(layer: SideLayer, rows: Tensor) -> None:
    router = nn.Linear(layer.width, len(rows), bias=False)
    with torch.no_grad():
        router.weight.copy_(rows)
    layer.router = router
