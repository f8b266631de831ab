"""The kernels of one process: the table of its engine, and for every shape the function that runs the chosen one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...errors import EngineError
from .experts import ExpertWeights, native_activation, run_native
from .native import NativeKernels
from .native import missing_reason as native_missing_reason
from .products import PRODUCTS, Product, run_rows
from .shapes import expert_shape, linear_shape
from .table import NATIVE, KernelTable, kernel_by_rule


class Kernels:
    """The table of an engine, and the native kernels if it names them."""

    def __init__(self, table: KernelTable) -> None:
        """Open what the table names. Raises EngineError if the native kernels are gone since it was made."""
        self._table = table
        self.native = NativeKernels.open(table.isa) if table.uses(NATIVE) else None
        if table.uses(NATIVE) and self.native is None:
            what = f"the native kernels were there when the engine started: {native_missing_reason()}"
            raise EngineError(what, "kernels", "Start again; with kernels = left_factor they are not needed")

    def linear(self, module: nn.Linear) -> LinearKernels:
        """Return the kernels of a linear layer with its weights loaded."""
        shape, native = linear_shape(module), self.native
        bound: list[Product] = []
        """The native product of this layer's weight once it was chosen: its call is prepared once."""

        def choose(rows: int) -> Product:
            kernel = self._table.kernel_for(shape, rows)
            if kernel != NATIVE:
                return PRODUCTS[kernel]
            if native is None or not native.takes_linear(module.weight):
                return PRODUCTS[kernel_by_rule(shape, rows)]
            if not bound:
                bound.append(_bind(native, module))
            return bound[0]

        return LinearKernels(choose)

    def expert(self, module: Any, tensors: Mapping[str, list[int]], dtype: str) -> ExpertKernels:
        """Return the kernels of the experts of a module; `tensors`: name and shape of those of one expert."""
        shape = expert_shape(module, tensors, dtype)
        if shape is None:
            return ExpertKernels()
        return ExpertKernels(lambda rows: self._table.kernel_for(shape, rows), self.native, native_activation(module))


class LinearKernels:
    """The product of a linear layer by its number of rows, chosen once for each."""

    def __init__(self, choose: Callable[[int], Product]) -> None:
        self._choose = choose
        self._chosen: dict[int, Product] = {}

    def __call__(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Compute a `Product` for rows [n, in]."""
        count = len(rows)
        product = self._chosen.get(count)
        if product is None:
            product = self._chosen[count] = self._choose(count)
        return product(rows, weight, bias)


class ExpertKernels:
    """The kernel of an expert by its number of rows, chosen once for each. An empty name leaves the choice to the rule.

    The default is for experts that an adapter computes itself.
    """

    def __init__(
        self,
        choose: Callable[[int], str] = lambda rows: "",
        native: NativeKernels | None = None,
        activation: str = "",
    ) -> None:
        """`activation`: that of the experts, as the native kernels name it."""
        self._choose, self._native, self._activation = choose, native, activation
        self._chosen: dict[int, str] = {}

    def kernel(self, rows: int) -> str:
        """Return the kernel for `rows` rows of an expert."""
        kernel = self._chosen.get(rows)
        if kernel is None:
            kernel = self._chosen[rows] = self._choose(rows)
        return kernel

    def run_native(
        self,
        module: Any,
        weights: Sequence[ExpertWeights],
        bounds: Sequence[tuple[int, int]],
        gathered: torch.Tensor,
        products: torch.Tensor,
    ) -> None:
        """Compute experts together by the native kernels, as `run_native` does. Raises EngineError without them."""
        if self._native is None or not self._activation:
            what = f"native kernels were chosen for {type(module).__name__}, and cannot compute it here"
            raise EngineError(what, "kernels", "Measure the table again: expertflow doctor --measure --model MODEL")
        run_native(self._native, module, self._activation, weights, bounds, gathered, products)

    def run_rows(self, rows: int) -> int:
        """Return how many rows are run for `rows`, padding included."""
        return run_rows(rows, self.kernel(rows))


def _bind(native: NativeKernels, module: nn.Linear) -> Product:
    """Return the native product of a layer. It raises TypeError for rows of another dtype, as the library does."""
    product, dtype = native.bound_linear(module.weight, module.bias), module.weight.dtype

    def run(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if rows.dtype is not dtype:
            raise TypeError(f"rows are {rows.dtype}, the weight of a linear layer is {dtype}")
        return product(rows)

    return run
