"""Packed experts and the native kernels: multiplied as they are, or unpacked faster than the library can.

Both give the values of `Packing`, so an expert has the same bits whichever way it is computed by one kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..packed.packing import Packing
from .native import NativeKernels, Weight
from .packed_matrix import FORMATS, PackedMatrix
from .unpacking import ExpertWeights, Unpacker

PackedWeights = dict[str, Weight]
"""Parameter name -> its tensor, or the matrix that holds it packed."""
MAX_HELD = 8192
"""Experts in memory whose descriptions are kept, a kilobyte each: a description costs as much as a small product."""


class NativeUnpacker(Unpacker):
    """Unpacker of experts in the memory of the CPU by the native kernels."""

    def __init__(self, native: NativeKernels, packings: Sequence[Packing], dtype: torch.dtype) -> None:
        """Unpack matrices to `dtype`. All formats must be among those of the native kernels (`takes`)."""
        self._native, self._packings, self._dtype = native, packings, dtype
        self._held = {name for packing in packings for name in packing.tensors}
        self._scratch: dict[str, torch.Tensor] = {}
        self._matrices: dict[tuple[int, ...], PackedWeights] = {}

    @staticmethod
    def takes(packings: Sequence[Packing]) -> bool:
        """Return whether the native kernels know the formats."""
        return all(packing.format in FORMATS for packing in packings)

    def keep_packed(self, weights: ExpertWeights) -> PackedWeights:
        """Return the parameters of an expert, given its slot tensors, which stay where they are while it is used."""
        key = tuple(tensor.data_ptr() for tensor in weights.values())
        found = self._matrices.get(key)
        if found is None:
            if len(self._matrices) >= MAX_HELD:
                self._matrices.clear()
            found = self._matrices[key] = self._describe(weights)
        return found

    def unpack(self, weights: ExpertWeights) -> ExpertWeights:
        """Return the parameters of an expert, given its slot tensors; they are valid until the next call."""
        packed = self.keep_packed(weights)
        return {name: self._values(name, weight) for name, weight in packed.items()}

    def _describe(self, weights: Mapping[str, torch.Tensor]) -> PackedWeights:
        plain: PackedWeights = {name: tensor for name, tensor in weights.items() if name not in self._held}
        here = [packing for packing in self._packings if packing.codes in weights]
        return plain | {packing.parameter: PackedMatrix(packing, weights) for packing in here}

    def _values(self, name: str, weight: Weight) -> torch.Tensor:
        if not isinstance(weight, PackedMatrix):
            return weight
        scratch = self._scratch.get(name)
        if scratch is None:
            scratch = self._scratch[name] = torch.empty(weight.shape, dtype=self._dtype)
        self._native.unpack(weight, self._dtype, scratch)
        return scratch.t().contiguous() if weight.packing.transposed else scratch
