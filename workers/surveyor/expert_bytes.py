"""Slot layout and places of all experts of a checkpoint."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from ...errors import CheckpointError
from ..checkpoint.layout import block_for, place, region_bytes
from ..checkpoint.survey import Piece, SlotTensor
from ..packed.choice import PackingChoice
from ..packed.packing import Packing
from .conversions import ExpertPart, expert_parts
from .expert_tensors import LayerTensors, Parameter, dequantised, is_quantised, packed
from .pieces import make_pieces, number_variants, part_places
from .sizing import expert_count, expert_kinds, expert_shapes
from .sources import ParameterSource

_REMEDY = "Leave experts_in out, or use experts_in = dequantised"


class ExpertBytes:
    """Slot layout and places of all experts; layers that are stored differently have pieces of their own."""

    def __init__(
        self, modules: dict[str, Any], sources: dict[str, ParameterSource], dtype: str, choice: PackingChoice
    ) -> None:
        """Lay out slots for experts in `dtype`. Raises CheckpointError if they are to be packed, and cannot be."""
        shapes, kinds = expert_shapes(modules), expert_kinds(modules)
        self.count, self.kinds = expert_count(shapes, kinds), len(kinds)
        self._parameters: list[Parameter] = [(n, shapes[n][1:], kind) for kind, own in enumerate(kinds) for n in own]
        self._dtype = dtype
        parts = [self._parts_of(layer, shapes, sources) for layer in modules]
        self._lay_out(self._tensors(parts, choice))

    def stored_bytes(self) -> int:
        """Return the bytes in the files of one expert of the kind that is largest there, the mean over the layers."""
        layers = Counter(self.variants or [0] * len(self.places))
        sizes: dict[int, int] = {}
        for piece in self.pieces:
            kind = self.tensors[piece.tensor].kind
            sizes[kind] = sizes.get(kind, 0) + piece.stored_bytes * layers[piece.variant]
        return round(max(sizes.values()) / len(self.places))

    def _parts_of(
        self, layer: str, shapes: dict[str, list[int]], sources: dict[str, ParameterSource]
    ) -> list[list[ExpertPart]]:
        names = [f"{layer}.{name}" for name, _, _ in self._parameters]
        return [
            expert_parts(name, sources[name], shapes[own])
            for name, (own, _, _) in zip(names, self._parameters, strict=True)
        ]

    def _tensors(self, parts: list[list[list[ExpertPart]]], choice: PackingChoice) -> list[LayerTensors]:
        """Return the slot tensors of every layer."""
        plain = [dequantised(self._parameters, own, self._dtype) for own in parts]
        if choice.experts_in == "dequantised":
            return plain
        try:
            if not any(map(is_quantised, parts)):
                raise ValueError("they are not quantised")
            layers = [packed(self._parameters, own, self._dtype) for own in parts]
        except ValueError as reason:
            if choice.experts_in == "packed":
                raise CheckpointError(f"experts cannot stay packed: {reason}", "experts_in", _REMEDY) from reason
            return plain
        packings = [packing for layer in layers for packing in layer.packings]
        return layers if choice.packs(packings, self._dtype) else plain

    def _lay_out(self, layers: list[LayerTensors]) -> None:
        self.block_bytes = block_for(max(_largest(layer) for layer in layers))
        placed = [_place(layer, self.block_bytes) for layer in layers]
        self.stride_bytes = max(stride_bytes for _, stride_bytes in placed)
        by_layer = [
            _Variant(tensors, make_pieces(tensors, layer.tensors), layer.packings)
            for layer, (tensors, _) in zip(layers, placed, strict=True)
        ]
        distinct = [own for number, own in enumerate(by_layer) if own not in by_layer[:number]]
        self.variants = [distinct.index(own) for own in by_layer] if len(distinct) > 1 else []
        self.packings = [replace(own, variant=n) for n, variant in enumerate(distinct) for own in variant.packings]
        self.tensors, pieces = _own_tensors(distinct) if self.packings else _shared_tensors(distinct)
        self.pieces, columns = number_variants(pieces)
        places = np.zeros((len(layers), 1 + max(map(max, columns)), self.count, 2), dtype=np.int64)
        for number, layer in enumerate(layers):
            own = columns[self.variants[number] if self.variants else 0]
            places[number, own] = part_places(layer.tensors, self.kinds)
        self.places = np.ascontiguousarray(places.transpose(0, 2, 1, 3))


class _Variant(NamedTuple):
    """Slot tensors, pieces and packed matrices of layers whose experts are stored alike."""

    tensors: list[SlotTensor]
    pieces: list[Piece]
    packings: list[Packing]


def _shared_tensors(variants: list[_Variant]) -> tuple[list[SlotTensor], list[list[Piece]]]:
    """Return the slot tensors of all layers, which are the same, and the pieces of each variant."""
    return variants[0].tensors, [variant.pieces for variant in variants]


def _own_tensors(variants: list[_Variant]) -> tuple[list[SlotTensor], list[list[Piece]]]:
    """Return slot tensors, each variant's after the other, and the pieces of each variant, which refer to its own."""
    tensors: list[SlotTensor] = []
    pieces: list[list[Piece]] = []
    for number, variant in enumerate(variants):
        pieces.append([replace(piece, tensor=piece.tensor + len(tensors)) for piece in variant.pieces])
        tensors += [replace(tensor, variant=number) for tensor in variant.tensors]
    return tensors, pieces


def _largest(layer: LayerTensors) -> int:
    """Return the bytes of an expert of the largest kind."""
    sizes: dict[int, int] = {}
    for tensor in layer.tensors:
        sizes[tensor.kind] = sizes.get(tensor.kind, 0) + region_bytes(tensor.region.shape, tensor.region.dtype)
    return max(sizes.values())


def _place(layer: LayerTensors, block_bytes: int) -> tuple[list[SlotTensor], int]:
    """Return the slot tensors of a layer, kind after kind, and the stride of a slot in bytes."""
    tensors: list[SlotTensor] = []
    strides: list[int] = []
    for kind in sorted({tensor.kind for tensor in layer.tensors}):
        own, stride_bytes = place([one.region for one in layer.tensors if one.kind == kind], block_bytes)
        tensors += [replace(tensor, kind=kind) for tensor in own]
        strides.append(stride_bytes)
    return tensors, max(strides)
