"""Root mean square norms of few rows, by one call of the native library in the place of the library's seven.

A decode step has two to four norms a layer, and starting seven small operations takes longer than computing them. What
a norm does with its weight is found out by trying its module, since families differ in where they round.
"""

from __future__ import annotations

import ctypes
import inspect
from typing import Any, cast

import torch
from torch import nn

from .library import open_library
from .native import DTYPES

FORMS = ("round_then_weigh", "weigh_then_round", "weigh_from_one")
"""Ways from a normalised value to its result, in the order of native/norm.c: it is rounded to the type and multiplied
by its weight, as in LLaMA; multiplied, then rounded (gpt-oss); multiplied by its weight plus one, and rounded
(Qwen3-Next)."""
MAX_VALUES = 1 << 16
"""Values of a call; more are faster on the threads of the library."""
_ARGUMENTS = (*(ctypes.c_int,) * 2, *(ctypes.c_int64,) * 2, *(ctypes.c_void_p,) * 2, ctypes.c_double, ctypes.c_void_p)
_TRIED_ROWS = 4
_TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-7}
"""Relative distance of two results that differ in the order of a sum alone: one unit in the last place of bfloat16."""
_MAX_UNEQUAL = 0.01
"""Share of bfloat16 results that another order may turn to the neighbour. Rounding at another place turns a tenth."""


class NativeNorm:
    """The norm of one module: rows [..., width] of the type of its weight, few and contiguous."""

    def __init__(self, run: Any, weight: torch.Tensor, epsilon: float, form: str) -> None:
        self._run, self._weight, self._address = run, weight, weight.data_ptr()
        self._numbers = (DTYPES[weight.dtype], FORMS.index(form))
        self._width, self._epsilon = len(weight), epsilon

    def takes(self, hidden: torch.Tensor) -> bool:
        """Return whether these rows are such ones."""
        return hidden.dtype is self._weight.dtype and hidden.numel() <= MAX_VALUES and hidden.is_contiguous()

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the norms of rows [..., width]."""
        result = torch.empty_like(hidden)
        rows = hidden.numel() // self._width
        where = (hidden.data_ptr(), self._address, self._epsilon, result.data_ptr())
        self._run(*self._numbers, rows, self._width, *where)
        return result


def native_norm(module: nn.Module) -> NativeNorm | None:
    """Return the native norm of a module with its weights loaded; None if it is no such norm, or none is here."""
    library, weight, epsilon = open_library(), _only_weight(module), _epsilon(module)
    if library is None or weight is None or epsilon is None:
        return None
    run = library.expertflow_norm
    run.argtypes, run.restype = list(_ARGUMENTS), None
    tried = torch.randn(_TRIED_ROWS, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    try:
        wanted = module(tried)
    except Exception:  # noqa: BLE001 - any model code may run here; such a module keeps its own way
        return None
    norms = (NativeNorm(run, weight, epsilon, form) for form in FORMS)
    return next((norm for norm in norms if _is_same(norm(tried), wanted)), None)


def _only_weight(module: nn.Module) -> torch.Tensor | None:
    """Return the weight [width] of a module that holds nothing else and takes one argument."""
    parameters = dict(module.named_parameters())
    weight = parameters.pop("weight", None)
    holds_more = parameters or list(module.buffers()) or list(module.children())
    if weight is None or holds_more or len(inspect.signature(module.forward).parameters) != 1:
        return None
    fits = weight.dim() == 1 and weight.is_cpu and weight.is_contiguous() and weight.dtype in _TOLERANCE
    return weight.detach() if fits else None


def _epsilon(module: nn.Module) -> float | None:
    found = [getattr(module, name, None) for name in ("variance_epsilon", "eps")]
    return next((value for value in found if isinstance(value, float)), None)


def _is_same(found: torch.Tensor, wanted: object) -> bool:
    if not isinstance(wanted, torch.Tensor) or wanted.dtype is not found.dtype or wanted.shape != found.shape:
        return False
    ours, theirs = found.float(), cast(torch.Tensor, wanted).float()
    is_close = torch.allclose(ours, theirs, rtol=_TOLERANCE[found.dtype], atol=1e-7)
    unequal = (ours != theirs).float().mean().item()
    return is_close and (found.dtype is torch.float32 or unequal <= _MAX_UNEQUAL)
