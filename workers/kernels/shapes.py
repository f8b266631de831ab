"""Shapes of the modules that kernels compute: the linear layers of a skeleton, and the experts of an experts module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..packed.packing import Packing
from .table import ExpertShape, LinearShape


def linear_shape(module: nn.Linear, dtype: torch.dtype | None = None) -> LinearShape:
    """Return the shape of a linear layer; `dtype` is that of its weight once it is loaded, if it is not loaded yet."""
    return LinearShape(module.out_features, module.in_features, _name(dtype or module.weight.dtype))


def linear_shapes(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> list[LinearShape]:
    """Return the distinct shapes of the plain linear layers of a model; `dtypes`: of each parameter, once loaded."""
    return list(count_linears(model, dtypes))


def count_linears(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> Counter[LinearShape]:
    """Return shape -> number of the plain linear layers of a model that have it, in the model's order."""
    return Counter(linear_shape(module, dtypes.get(f"{name}.weight")) for name, module in plain_linears(model))


def plain_linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield path and module of every linear layer that is the library's own: a subclass may do more.

    Layers without a weight are those of experts, whose weights are in slots.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and type(module) is nn.Linear and "weight" in module._parameters:
            yield name, module


def expert_shape(
    module: Any, tensors: Mapping[str, list[int]], dtype: str, packings: Sequence[Packing] = ()
) -> ExpertShape | None:
    """Return the shape of the experts of a module of transformers' experts interface; None for an adapter's experts.

    `tensors`: name and shape of the parameters of one expert, some of which may be held packed.
    """
    if hasattr(module, "run_expert"):
        return None
    down = tensors["down_proj"]
    width, inner = reversed(down) if module.is_transposed else down
    return ExpertShape(
        width=width,
        inner=inner,
        dtype=dtype,
        gated=module.has_gate,
        transposed=module.is_transposed,
        bias=module.has_bias,
        activation=type(module.act_fn).__name__ if hasattr(module, "act_fn") else "own",
        packed=packing_name(packings),
    )


def packing_name(packings: Sequence[Packing]) -> str:
    """Return how the matrices of an expert are packed, as a word of a key: formats and the groups of their scales."""
    groups = [f"/{own.group_rows}x{own.group_columns or own.columns}" if own.scales else "" for own in packings]
    return "+".join(dict.fromkeys(own.format + group for own, group in zip(packings, groups, strict=True)))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
