"""Codings: a packed matrix, and the stored tensors that its parts are made of. Without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from .packing import Packing
from .repacking import REPACK

Role = str
"""Field of `Packing` that names a slot tensor: codes, scales, zeros, tensor_scale, order."""


class Facts(NamedTuple):
    """Type, by safetensors' name or as numpy names it, and shape of a stored tensor."""

    dtype: str
    shape: list[int]


class Input(msgspec.Struct, frozen=True):
    """Stored tensor that becomes one part of a packed matrix."""

    suffix: str
    """Last part of its name: `weight_packed`, `qweight`."""
    shape: list[int]
    """As in the file."""
    dtype: str
    """As numpy holds the stored values (bfloat16: uint16)."""
    target_shape: list[int]
    """In a slot."""
    target_dtype: str
    """Type of the slot tensor."""
    repack: str = ""
    """Name in `repacking.REPACK`; empty: the bytes stay as they are."""

    @property
    def count_bytes(self) -> int:
        """Return the stored bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Coding(msgspec.Struct, frozen=True):
    """Packed matrix, with an input for each of its parts."""

    packing: Packing
    inputs: dict[Role, Input]

    def pack(self, stored: Mapping[Role, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the parts by the names in `packing`, given the stored bytes, uint8 [bytes], of each role."""
        return {getattr(self.packing, role): pack_input(one, stored[role]) for role, one in self.inputs.items()}


def pack_input(one: Input, raw: np.ndarray) -> np.ndarray:
    """Return one part of a packed matrix, [*target_shape], given its stored bytes, uint8 [bytes]."""
    if not one.repack:
        return raw.view(numpy_dtype(one.target_dtype)).reshape(one.target_shape)
    return REPACK[one.repack](raw.view(one.dtype).reshape(one.shape), one.target_shape)


def numpy_dtype(dtype: str) -> str:
    """Return the type as which numpy holds values of a slot tensor."""
    return "uint16" if dtype == "bfloat16" else dtype
