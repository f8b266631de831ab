"""From the parts of an expert to the pieces of a survey: sizes in file and slot, and the conversion between."""

from __future__ import annotations

import math

import msgspec

from ...errors import CheckpointError
from ..checkpoint.gguf.block_types import BLOCK_TYPES
from ..checkpoint.headers import BYTE, DTYPE_BYTES, FLOAT8, FLOAT8_EXPONENT, SLOT_BYTES
from ..checkpoint.quantisation_config import UNQUANTISED
from ..checkpoint.survey import FLOAT4_PAIRS, Piece, Scales, SlotTensor
from ..packed.coding import Input
from .conversions import ExpertPart
from .expert_tensors import ExpertTensor

_EXPONENTS = frozenset({BYTE, FLOAT8_EXPONENT})
_SCALE_DTYPES = {FLOAT8: _EXPONENTS | frozenset(DTYPE_BYTES), FLOAT4_PAIRS: _EXPONENTS}


Places = list[tuple[int, int]]
"""File and offset in bytes, for each expert."""


def part_places(layer: list[ExpertTensor], kinds: int) -> list[Places]:
    """Return [places, experts]: of all parts of a layer (by tensor), then of their scales and inputs."""
    parts = [(part, tensor.kind) for tensor in layer for part in tensor.parts]
    pieces = [_pad_kinds(part.at, kind, kinds) for part, kind in parts]
    return pieces + [_pad_kinds(at, kind, kinds) for part, kind in parts for at in _others_at(part)]


def _others_at(part: ExpertPart) -> list[Places]:
    """Return the places of the tensors that a part needs besides its own."""
    return [part.scales.at] if part.scales is not None else list(part.inputs_at)


def _pad_kinds(at: Places, kind: int, kinds: int) -> Places:
    """Return places of all experts, zeros for those of other kinds."""
    empty = [(0, 0)] * len(at)
    return empty * kind + at + empty * (kinds - kind - 1)


def number_variants(variants: list[list[Piece]]) -> tuple[list[Piece], list[list[int]]]:
    """Return the pieces of all variants, numbered on, and for each variant its columns of the place table.

    There the columns of all pieces come first, then those of their scales and inputs.
    """
    pieces: list[Piece] = []
    columns: list[list[int]] = []
    following = sum(map(len, variants))
    for variant, own in enumerate(variants):
        own_columns = list(range(len(pieces), len(pieces) + len(own)))
        for piece in own:
            piece = _place_others(piece, following)
            others = [piece.scales.place] if piece.scales else piece.inputs
            own_columns += others
            following += len(others)
            pieces.append(msgspec.structs.replace(piece, variant=variant))
        columns.append(own_columns)
    return pieces, columns


def _place_others(piece: Piece, first: int) -> Piece:
    """Return the piece with its scales, or inputs, in the columns from `first`."""
    if piece.scales is not None:
        return msgspec.structs.replace(piece, scales=msgspec.structs.replace(piece.scales, place=first))
    return msgspec.structs.replace(piece, inputs=list(range(first, first + len(piece.inputs))))


def make_pieces(tensors: list[SlotTensor], layer: list[ExpertTensor]) -> list[Piece]:
    """Return the pieces of the slot tensors of a layer, one tensor after the other.

    Raises CheckpointError for a type that cannot be converted.
    """
    pieces: list[Piece] = []
    following = sum(len(tensor.parts) for tensor in layer)
    for number, (tensor, own) in enumerate(zip(tensors, layer, strict=True)):
        at = 0
        for part in own.parts:
            piece = _place_others(_make_piece(number, tensor, part, at), following)
            pieces.append(msgspec.structs.replace(piece, check=own.check))
            at += piece.count_bytes
            following += len(_others_at(part))
    return pieces


def _make_piece(number: int, tensor: SlotTensor, part: ExpertPart, at: int) -> Piece:
    """Return the piece for a part, `at` bytes into slot tensor `number`."""
    if part.input is not None:
        return _input_piece(number, tensor, part, part.input, at)
    if part.coding is None:
        _check_dtype(tensor.name, part)
    items = math.prod(part.shape)
    inputs = part.coding.inputs.values() if part.coding else []
    return Piece(
        tensor=number,
        position_bytes=at if part.every == 1 else 0,
        count_bytes=items * SLOT_BYTES[tensor.dtype] if part.every == 1 else tensor.count_bytes,
        source_bytes=sum(one.count_bytes for one in inputs) or _stored_bytes(part.dtype, items),
        source_dtype=part.dtype,
        source_shape=part.shape,
        operation=part.rearranged or ("copy" if part.dtype == tensor.dtype and part.every == 1 else "cast"),
        every=part.every,
        first=part.first,
        scales=_scales(part),
        coding=part.coding,
        inputs=[0] * len(inputs),
    )


def _input_piece(number: int, tensor: SlotTensor, part: ExpertPart, one: Input, at: int) -> Piece:
    """Return the piece for a part of a packed matrix."""
    return Piece(
        tensor=number,
        position_bytes=at,
        count_bytes=math.prod(one.target_shape) * SLOT_BYTES[tensor.dtype],
        source_bytes=one.count_bytes,
        source_dtype=one.target_dtype,
        source_shape=one.shape or [1],
        input=one,
        inputs=[0] * len(part.inputs_at),
    )


def _scales(part: ExpertPart) -> Scales | None:
    if part.scales is None:
        return None
    return Scales(place=0, dtype=part.scales.dtype, grid=part.scales.shape, block=part.block)


def _stored_bytes(dtype: str, items: int) -> int:
    if dtype in BLOCK_TYPES:
        return BLOCK_TYPES[dtype].count_bytes(items)
    return items // 2 if dtype == FLOAT4_PAIRS else items * SLOT_BYTES.get(dtype, 1)


def _check_dtype(name: str, part: ExpertPart) -> None:
    if part.scales is None and (part.dtype in SLOT_BYTES or part.dtype in BLOCK_TYPES):
        return
    if part.scales is None:
        raise CheckpointError(f"experts are stored as {part.dtype} without scales", name, UNQUANTISED)
    if part.scales.dtype not in _SCALE_DTYPES.get(part.dtype, ()):
        what = f"experts are stored as {part.dtype} with scales in {part.scales.dtype}, which is not supported"
        raise CheckpointError(what, name, UNQUANTISED)
    if part.dtype == FLOAT4_PAIRS and part.block[0] != 1:
        raise CheckpointError(f"4-bit experts have scales for blocks of {part.block}, not of rows", name, UNQUANTISED)
    if part.rearranged == "deinterleave" and not (part.block[0] == 1 and part.scales.dtype in _EXPONENTS):
        what = f"rows of gate and up alternate, but have scales for blocks of {part.block}, not exponents for each row"
        raise CheckpointError(what, name, UNQUANTISED)
