"""Work that is timed: one product or one expert of a shape, on random weights that do not stay in the caches."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ...ipc.shared.available import available_bytes
from ..packed.packing import Packing
from .experts import first_projection, native_activation, run_by_library, run_native
from .native import BoundLinear, NativeKernels
from .products import PRODUCTS
from .table import NATIVE, ExpertShape, LinearShape, dtype_bytes, library_candidates
from .unpacking import ExpertWeights

POOL_BYTES = 256 << 20
"""Weights are taken in turn from this much memory, more than most caches hold, or from an eighth of what is free."""
MAX_WEIGHT_BYTES = 16 << 20
"""A larger weight is timed by a part of this size: how kernels compare does not depend on the rest."""
MIN_WEIGHT_BYTES = 1 << 20
"""The time of a smaller weight is overhead; the rule is good enough and costs no measurement."""
_BLOCK = 1 << 16


class Workload(Protocol):
    """One shape that kernels compete for."""

    key: str
    candidates: list[str]

    def prepare(self, rows: int) -> None:
        """Make the input of the next runs: `rows` rows."""
        ...

    def run(self, kernel: str, number: int) -> None:
        """Compute once by a kernel, with the weights of this number in turn."""
        ...


class WeightPool:
    """Random values in memory of their own, which is returned to the system; weights of any shape are views of it."""

    def __init__(self, count_bytes: int | None = None) -> None:
        """Take `count_bytes`, or a size that suits the machine."""
        size = count_bytes or min(POOL_BYTES, max(available_bytes() // 8, MAX_WEIGHT_BYTES))
        self._memory = torch.from_numpy(np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8))
        self._dtype: torch.dtype | None = None

    def take(self, counts: list[int], dtype: torch.dtype, number: int) -> list[torch.Tensor]:
        """Return adjacent runs of `counts` values each, the set of this number in turn."""
        self._fill(dtype)
        size = sum(counts) * dtype.itemsize
        start = number % max(self._memory.numel() // size, 1) * size
        return list(self._memory[start : start + size].view(dtype).split(counts))

    def _fill(self, dtype: torch.dtype) -> None:
        if self._dtype == dtype:
            return
        generator = torch.Generator().manual_seed(0)
        block = (torch.randn(_BLOCK, generator=generator) / 32).to(dtype).view(torch.uint8)
        for part in self._memory.split(block.numel()):
            part.copy_(block[: part.numel()])
        self._dtype = dtype


class LinearWorkload:
    """A linear layer, or the part of its outputs that is small enough."""

    def __init__(self, shape: LinearShape, pool: WeightPool, native: NativeKernels | None) -> None:
        self.key, self._pool, self._native = shape.key, pool, native
        self.candidates = linear_candidates(shape, native)
        self._inputs, self._dtype = shape.inputs, getattr(torch, shape.dtype)
        fitting = MAX_WEIGHT_BYTES // (shape.inputs * dtype_bytes(shape.dtype))
        self._outputs = max(min(shape.outputs, fitting), 1)
        self._rows = torch.empty(0)
        self._bound: dict[int, BoundLinear] = {}
        """Address of a weight -> its native product, prepared as compute prepares it."""

    def prepare(self, rows: int) -> None:
        """Make the input of the next runs: `rows` rows."""
        self._rows = random_rows(rows, self._inputs, self._dtype)

    def run(self, kernel: str, number: int) -> None:
        """Compute once by a kernel, with the weights of this number in turn."""
        (values,) = self._pool.take([self._outputs * self._inputs], self._dtype, number)
        weight = values.view(self._outputs, self._inputs)
        if kernel == NATIVE and self._native is not None:
            self._bind(self._native, weight)(self._rows)
        else:
            PRODUCTS[kernel](self._rows, weight, None)

    def _bind(self, native: NativeKernels, weight: torch.Tensor) -> BoundLinear:
        address = weight.data_ptr()
        if address not in self._bound:
            self._bound[address] = native.bound_linear(weight, None)
        return self._bound[address]


class ExpertWorkload:
    """A routed expert, or one with fewer inner values that is small enough. `module` gives its activation."""

    def __init__(self, shape: ExpertShape, module: Any, pool: WeightPool, native: NativeKernels | None) -> None:
        self.key, self._module, self._pool, self._native = shape.key, module, pool, native
        self.candidates, self._activation = expert_candidates(shape, module, native), native_activation(module)
        self._dtype: torch.dtype = getattr(torch, shape.dtype)
        inner = min(shape.inner, max(shape.inner * MAX_WEIGHT_BYTES // shape.weight_bytes // 64 * 64, 64))
        self._width = shape.width
        up, down = [inner * (2 if shape.gated else 1), shape.width], [shape.width, inner]
        first = first_projection(module)
        flip = slice(None, None, -1 if shape.transposed else 1)
        self._shapes = {first: up[flip], "down_proj": down[flip]}
        if shape.bias:
            self._shapes |= {f"{first}_bias": up[:1], "down_proj_bias": down[:1]}
        self._rows = torch.empty(0)

    def prepare(self, rows: int) -> None:
        """Make the input of the next runs: `rows` rows."""
        self._rows = random_rows(rows, self._width, self._dtype)

    def run(self, kernel: str, number: int) -> None:
        """Compute once by a kernel, with the weights of this number in turn."""
        weights, rows = self._weights(number), self._rows
        if kernel == NATIVE and self._native is not None:
            bounds, products = [(0, len(rows))], torch.empty_like(rows)
            run_native(self._native, self._module, self._activation, [weights], bounds, rows, products)
        else:
            run_by_library(self._module, weights, rows, kernel)

    def _weights(self, number: int) -> ExpertWeights:
        counts = [int(np.prod(shape)) for shape in self._shapes.values()]
        values = self._pool.take(counts, self._dtype, number)
        return {name: own.view(shape) for (name, shape), own in zip(self._shapes.items(), values, strict=True)}


def linear_candidates(shape: LinearShape, native: NativeKernels | None) -> list[str]:
    """Return the kernels that can take a linear layer of this shape."""
    takes = native is not None and native.takes_linear(torch.empty(1, 1, dtype=getattr(torch, shape.dtype)))
    return [*([NATIVE] if takes else []), *library_candidates(shape)]


def expert_candidates(
    shape: ExpertShape, module: Any, native: NativeKernels | None, packings: Sequence[Packing] = ()
) -> list[str]:
    """Return the kernels that can take the experts of this module, whose matrices may be packed."""
    takes = native is not None and native_activation(module, packings)
    return [*([NATIVE] if takes else []), *library_candidates(shape)]


def random_rows(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Return random rows, `dtype` [rows, width]."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1)).to(dtype)
