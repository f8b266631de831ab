"""The grouped product of a GPU, if it can be had there: Triton builds kernels on the machine that runs them."""

from __future__ import annotations

import logging
from importlib.util import find_spec

import torch

from .groups import GroupedProduct

NO_TRITON = "Triton is not installed"


def open_product(experts: int, dtype: torch.dtype, where: torch.device) -> GroupedProduct | None:
    """For layers of so many experts of this dtype; None, with a warning, where no kernel can be built.

    Found out now and not in the first step, whose rows would all fail: besides Triton it takes a C compiler with
    Python's headers, and a GPU that has products of this dtype.
    """
    try:
        return _tried(experts, dtype, where)
    except Exception as error:  # noqa: BLE001 - whatever Triton, a compiler or a linker says, torch's products remain
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        words = "no grouped kernel on %s (%s): every expert is a launch of its own, which is slower"
        logging.getLogger(__name__).warning(words, where, reason)
        return None


def _tried(experts: int, dtype: torch.dtype, where: torch.device) -> GroupedProduct:
    if find_spec("triton") is None:
        raise ModuleNotFoundError(NO_TRITON)
    from .triton_product import TritonProduct

    product = TritonProduct(experts)
    product.try_out(dtype, where)
    return product
