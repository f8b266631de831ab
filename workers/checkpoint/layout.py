"""Layout of an expert in a slot, and the runs of file bytes that fill it. numpy only.

A slot has one region a tensor. Direct reads need equal offsets modulo the block in file and memory. So a region starts
at a block and holds its tensor at the offset that the file happens to have. The rest of the last block has room, too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import numpy as np

from .headers import SLOT_BYTES
from .survey import Piece, SlotTensor, Survey

DIRECT_BLOCK_BYTES = 4096
DIRECT_FROM_BYTES = 256 * 1024
SMALL_ALIGNMENT_BYTES = 256
"""Alignment up to which the libraries of a GPU choose kernels by address: all slots must look alike (I1a)."""


def block_for(expert_bytes: int) -> int:
    """Return the block of direct reads in bytes, or 1 for experts so small that the guards would outweigh them."""
    return DIRECT_BLOCK_BYTES if expert_bytes >= DIRECT_FROM_BYTES else 1


class Region(NamedTuple):
    """Tensor to be placed in a slot."""

    name: str
    shape: list[int]
    dtype: str


def place_regions(shapes: dict[str, list[int]], dtype: str, block_bytes: int) -> tuple[list[SlotTensor], int]:
    """Return regions of the tensors of one expert, one after the other, and the stride of a slot in bytes."""
    return place([Region(name, shape, dtype) for name, shape in shapes.items()], block_bytes)


def place(regions: list[Region], block_bytes: int) -> tuple[list[SlotTensor], int]:
    """Return the same for tensors of different types."""
    alignment = max(block_bytes, SMALL_ALIGNMENT_BYTES)
    guard = alignment if block_bytes > 1 else 0
    tensors, at = [], 0
    for name, shape, dtype in regions:
        count = region_bytes(shape, dtype)
        tensors.append(SlotTensor(name, shape, dtype, count, at))
        at += _round_up(count, alignment) + guard
    return tensors, at


def region_bytes(shape: list[int], dtype: str) -> int:
    """Return the bytes of the values of a slot tensor."""
    return math.prod(shape) * SLOT_BYTES[dtype]


def place_kinds(kinds: list[dict[str, list[int]]], dtype: str, block_bytes: int) -> tuple[list[SlotTensor], int]:
    """Return the same for experts of several kinds, any of which may be in a slot: every kind begins at its start."""
    placed = [place_regions(shapes, dtype, block_bytes) for shapes in kinds]
    tensors = [msgspec.structs.replace(tensor, kind=kind) for kind, (own, _) in enumerate(placed) for tensor in own]
    return tensors, max(stride_bytes for _, stride_bytes in placed)


def filled_bytes(survey: Survey, layer: int, expert: int) -> int:
    """Return the bytes of a slot, from its start, that this expert of this layer may take, guards included."""
    own = [survey.tensors[number] for number in survey.tensors_of(layer, expert)]
    end = max(tensor.region_bytes + tensor.count_bytes for tensor in own)
    return min(end + survey.block_bytes, survey.stride_bytes)


def layer_bytes(survey: Survey) -> list[list[int]]:
    """Return [layers][kinds], the payload bytes of an expert: layers may be stored in different types."""
    sizes: dict[tuple[int, int], int] = {}
    for tensor in survey.tensors:
        key = tensor.variant, tensor.kind
        sizes[key] = sizes.get(key, 0) + tensor.count_bytes
    variants = [survey.variant_of(layer) if survey.packings else 0 for layer in range(survey.layers)]
    return [[sizes.get((variant, kind), 0) for kind in range(survey.kinds)] for variant in variants]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def tensor_positions(survey: Survey) -> np.ndarray:
    """Return int64 [layers, experts, tensors], the byte position of every tensor of every expert in its slot.

    Tensors that the experts of a layer do not have keep the start of their region.
    """
    places = survey.place_table()
    positions = np.empty((survey.layers, survey.experts, len(survey.tensors)), dtype=np.int64)
    for number, tensor in enumerate(survey.tensors):
        positions[:, :, number] = tensor.region_bytes
        if not survey.aligned:
            positions[:, :, number] += _offsets_in_region(survey, places, number)
    return positions


def _offsets_in_region(survey: Survey, places: np.ndarray, tensor: int) -> np.ndarray:
    """Return int64 [layers, experts], the byte offset of a tensor in its region."""
    firsts = {
        piece.variant: number for number, piece in reversed(list(enumerate(survey.pieces))) if piece.tensor == tensor
    }
    first = np.array([firsts.get(survey.variant_of(layer), -1) for layer in range(survey.layers)])
    copied = np.array([number >= 0 and survey.pieces[number].is_copy for number in first])
    offsets = places[np.arange(survey.layers), :, first, 1] % survey.block_bytes
    # A file offset that is no multiple of the item would give an unaligned view: read such tensors through a bounce.
    usable = (offsets % survey.tensors[tensor].itemsize == 0) & copied[:, None]
    return np.where(usable, offsets, 0)


class ByteRun(msgspec.Struct, frozen=True):
    """Run of file bytes that fills slot bytes. `piece` is None for a plain copy, else its bytes are converted.

    `opens`, `closes`: the run begins (ends) its tensor, so a direct read may spill the rest of its first (last) block
    into the room before (the guard behind) it.
    """

    file: int
    offset_bytes: int
    count_bytes: int
    position_bytes: int
    piece: Piece | None
    opens: bool
    closes: bool
    scales_at: tuple[int, int] = (0, 0)
    """File and offset of the scales of a piece that has them."""
    inputs_at: list[tuple[int, int]] = []
    """The same for the inputs of its coding."""
    check: str = ""
    """Type of the scales that a plain copy brings, none of which may be NaN; empty: it brings none."""
    tensor: int = 0
    """Slot tensor that it fills, or begins to fill."""

    @property
    def files(self) -> tuple[int, ...]:
        """Return the files that it is read from."""
        others = [file for file, _ in self.inputs_at]
        return (self.file, *others, self.scales_at[0]) if self.piece and self.piece.scales else (self.file, *others)


class ReadPlan:
    """Runs to read for any expert of a survey: neighbours in both file and slot are one run."""

    def __init__(self, survey: Survey) -> None:
        self._kind_of, self._variant_of, self._pieces = survey.kind_of, survey.variant_of, survey.pieces
        self._numbers: dict[tuple[int, int], list[int]] = {}
        """Numbers of the pieces, by variant and kind."""
        for number, piece in enumerate(survey.pieces):
            self._numbers.setdefault((piece.variant, survey.tensors[piece.tensor].kind), []).append(number)
        self._places = survey.place_table()
        self._positions = tensor_positions(survey)

    def runs(self, layer: int, expert: int) -> list[ByteRun]:
        """Return the runs to read for one expert, in file order."""
        runs: list[ByteRun] = []
        for number in self._numbers[self._variant_of(layer), self._kind_of(expert)]:
            run = self._run(layer, expert, number, self._pieces[number])
            if runs and _continues(runs[-1], run):
                joined = runs[-1].count_bytes + run.count_bytes
                runs[-1] = msgspec.structs.replace(runs[-1], count_bytes=joined, closes=run.closes)
            else:
                runs.append(run)
        return sorted(runs, key=lambda run: (run.file, run.offset_bytes))

    def _run(self, layer: int, expert: int, number: int, piece: Piece) -> ByteRun:
        file, offset = (int(value) for value in self._places[layer, expert, number])
        position = int(self._positions[layer, expert, piece.tensor]) + piece.position_bytes
        converted = None if piece.is_copy else piece
        closes = self._is_last(number)
        opens, scales_at = piece.position_bytes == 0, self._scales_at(layer, expert, piece)
        inputs_at = [tuple(at) for at in self._places[layer, expert, piece.inputs].tolist()]
        check = piece.check if converted is None else ""
        where = (file, offset, piece.source_bytes, position)
        return ByteRun(*where, converted, opens, closes, scales_at, inputs_at, check, piece.tensor)

    def _is_last(self, number: int) -> bool:
        """Return whether a piece ends its tensor."""
        following = self._pieces[number + 1 : number + 2]
        own = self._pieces[number]
        return not any((piece.tensor, piece.variant) == (own.tensor, own.variant) for piece in following)

    def _scales_at(self, layer: int, expert: int, piece: Piece) -> tuple[int, int]:
        if piece.scales is None:
            return (0, 0)
        file, offset = self._places[layer, expert, piece.scales.place].tolist()
        return file, offset


def _continues(earlier: ByteRun, later: ByteRun) -> bool:
    return (
        earlier.piece is None
        and later.piece is None
        and earlier.check == later.check
        and earlier.file == later.file
        and earlier.offset_bytes + earlier.count_bytes == later.offset_bytes
        and earlier.position_bytes + earlier.count_bytes == later.position_bytes
    )
