"""The kernels of one process: the table of its engine, and for every shape the function that runs the chosen one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...errors import EngineError
from ..packed.packing import Packing
from .experts import native_activation, run_native
from .native import NativeKernels
from .native import missing_reason as native_missing_reason
from .packed_experts import NativeUnpacker
from .products import PRODUCTS, Product, run_rows
from .shapes import expert_shape, linear_shape
from .table import NATIVE, KernelTable, kernel_by_rule
from .unpacking import ExpertWeights, Unpacker


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

    def expert(
        self, module: Any, parameters: Mapping[str, list[int]], dtype: str, packings: Sequence[Packing] = ()
    ) -> ExpertKernels:
        """Return the kernels of the experts of a module; `parameters`: name and shape of those of one expert.

        Matrices with `packings` are held packed.
        """
        shape, unpacker = expert_shape(module, parameters, dtype, packings), self._open_unpacker(packings, dtype)
        if shape is None:
            return ExpertKernels(unpacker=unpacker)
        activation = native_activation(module, packings)
        return ExpertKernels(lambda rows: self._table.kernel_for(shape, rows), self.native, activation, unpacker)

    def _open_unpacker(self, packings: Sequence[Packing], dtype: str) -> Unpacker | None:
        """Return the unpacker of experts on the CPU: the native kernels', if they know the formats."""
        native = self.native or (NativeKernels.open() if packings else None)
        if native is None or not NativeUnpacker.takes(packings):
            return open_unpacker(packings, dtype)
        return NativeUnpacker(native, packings, getattr(torch, dtype)) if packings else None


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
        unpacker: Unpacker | None = None,
    ) -> None:
        """`activation`: that of the experts, as the native kernels name it. `unpacker`: None if they are not packed."""
        self._choose, self._native, self._activation, self._unpacker = choose, native, activation, unpacker
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
        if self._unpacker is None or isinstance(self._unpacker, NativeUnpacker):
            held = weights if self._unpacker is None else [self._unpacker.keep_packed(own) for own in weights]
            run_native(self._native, module, self._activation, held, bounds, gathered, products)
            return
        # The native kernels give an expert the same bits alone and among others.
        for own, rows in zip(weights, bounds, strict=True):
            run_native(self._native, module, self._activation, [self.unpack(own)], [rows], gathered, products)

    def may_merge(self, rows: int) -> bool:
        """Return whether the native kernels give `rows` rows of an expert the same bits among more rows of it."""
        return self._native is None or self._unpacker is None or not self._native.counts_rows(rows)

    def unpack(self, weights: ExpertWeights) -> ExpertWeights:
        """Return the parameters of an expert as they are computed with, valid until the next call.

        Weights that are not packed are returned as they are.
        """
        return weights if self._unpacker is None else self._unpacker.unpack(weights)

    def run_rows(self, rows: int) -> int:
        """Return how many rows are run for `rows`, padding included."""
        return run_rows(rows, self.kernel(rows))


def open_unpacker(packings: Sequence[Packing], dtype: str) -> Unpacker | None:
    """Return the unpacker of matrices packed so, to a type; None if there are none."""
    return Unpacker(packings, getattr(torch, dtype)) if packings else None


def _bind(native: NativeKernels, module: nn.Linear) -> Product:
    """Return the native product of a layer. It raises TypeError for rows of another dtype, as the library does."""
    product, dtype = native.bound_linear(module.weight, module.bias), module.weight.dtype

    def run(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if rows.dtype is not dtype:
            raise TypeError(f"rows are {rows.dtype}, the weight of a linear layer is {dtype}")
        return product(rows)

    return run
