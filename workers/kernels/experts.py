"""Computes one expert, or all of a layer, by the kernel that was chosen for it.

The module is transformers' experts module without its weights: its flags say how an expert is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..packed.packing import Packing
from .native import NativeKernels, Weight, activation_of
from .products import project, project_stack
from .unpacking import ExpertWeights

OWN_ACTIVATION = "own"
"""An activation that only the module knows; torch computes it between two calls of the native kernels."""


def run_by_library(module: Any, weights: ExpertWeights, rows: torch.Tensor, kernel: str = "") -> torch.Tensor:
    """Compute one expert on its rows [n, width] with the library's products: [n, width].

    Without a `kernel` the rule decides, as for shapes that were not measured.
    """
    inner = _project(module, weights, first_projection(module), rows, kernel)
    return normalize(module, _project(module, weights, "down_proj", activate(module, inner), kernel))


def run_stack(module: Any, stack: ExpertWeights, rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Compute all experts of a module that `is_plain`, each on the rows up to its end: [n, width].

    `stack`: tensors [experts, ...]; `ends`: int32 [experts]. Gives the bits of `run_by_library` by `left_factor`.
    """
    inner = project_stack(rows, stack[first_projection(module)], ends)
    return normalize(module, project_stack(activate(module, inner), stack["down_proj"], ends))


def run_native(
    native: NativeKernels,
    module: Any,
    activation: str,
    weights: Sequence[Mapping[str, Weight]],
    bounds: Sequence[tuple[int, int]],
    gathered: torch.Tensor,
    products: torch.Tensor,
) -> None:
    """Compute rows `bounds[i]` of `gathered` [n, width] through `weights[i]` into those of `products` [n, width].

    `activation`: what `native_activation` returned for the module. Weights may be packed.
    """
    if activation == OWN_ACTIVATION:
        _run_native_products(native, module, weights, bounds, gathered, products)
    else:
        native.experts(activation, weights, bounds, gathered, products)
    if module.has_post_expert_norm:
        for low, high in bounds:
            products[low:high] = normalize(module, products[low:high])


def _run_native_products(
    native: NativeKernels,
    module: Any,
    weights: Sequence[Mapping[str, Weight]],
    bounds: Sequence[tuple[int, int]],
    gathered: torch.Tensor,
    products: torch.Tensor,
) -> None:
    """Compute experts in two calls, with the module's own activation of each expert between.

    The activation of all at once would give other bits: torch computes the last elements of a tensor in another way.
    """
    first = first_projection(module)
    inner = native.products(*_column(weights, first), bounds, gathered)
    active = inner.new_empty(len(inner), weights[0]["down_proj"].shape[1])
    for low, high in bounds:
        active[low:high] = activate(module, inner[low:high])
    down = native.products(*_column(weights, "down_proj"), bounds, active)
    for low, high in bounds:
        products[low:high] = down[low:high]


def _column(weights: Sequence[Mapping[str, Weight]], name: str) -> tuple[list[Weight], list[Weight] | None]:
    """Return one projection of all experts, and its biases."""
    biases = [own[f"{name}_bias"] for own in weights] if f"{name}_bias" in weights[0] else None
    return [own[name] for own in weights], biases


def native_activation(module: Any, packings: Sequence[Packing] = ()) -> str:
    """Return the activation of a module of transformers' experts interface, as the native kernels name it.

    OWN_ACTIVATION: they do not know it. Empty: they cannot compute its experts. A parameter that is the transpose of a
    packed matrix is as good as any other.
    """
    turned = {packing.parameter for packing in packings if packing.transposed}
    is_turned = turned == {first_projection(module), "down_proj"}
    return "" if module.is_transposed and not is_turned else activation_of(module) or OWN_ACTIVATION


def first_projection(module: Any) -> str:
    """Return the name of the first projection; `down_proj` is the second."""
    return "gate_up_proj" if module.has_gate else "up_proj"


def activate(module: Any, inner: torch.Tensor) -> torch.Tensor:
    """Apply the activation between the two projections, row by row; returns [n, inner width].

    `inner` is [n, inner width], or of twice that width where there is a gate.
    """
    return module._apply_gate(inner) if module.has_gate else module.act_fn(inner)


def normalize(module: Any, products: torch.Tensor) -> torch.Tensor:
    """Apply the norm after the second projection, if there is one, to `products` [n, width], row by row."""
    return module.post_expert_norm(products) if module.has_post_expert_norm else products


def _project(module: Any, weights: ExpertWeights, name: str, rows: torch.Tensor, kernel: str) -> torch.Tensor:
    weight = weights[name].t() if module.is_transposed else weights[name]
    return project(rows, weight, weights[f"{name}_bias"] if module.has_bias else None, kernel)
