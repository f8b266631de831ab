"""From the parts of an expert to the pieces of a survey: sizes in file and slot, and the conversion between."""

from __future__ import annotations

import math

import msgspec

from ...errors import CheckpointError
from ..checkpoint.headers import BYTE, DTYPE_BYTES, FLOAT8, FLOAT8_EXPONENT
from ..checkpoint.quantisation_config import UNQUANTISED
from ..checkpoint.survey import FLOAT4_PAIRS, Piece, Scales, SlotTensor
from .conversions import ExpertPart

_EXPONENTS = frozenset({BYTE, FLOAT8_EXPONENT})
_SCALE_DTYPES = {FLOAT8: _EXPONENTS | frozenset(DTYPE_BYTES), FLOAT4_PAIRS: _EXPONENTS}


Places = list[tuple[int, int]]
"""File and offset in bytes, for each expert."""


def part_places(layer: list[list[ExpertPart]], tensors: list[SlotTensor], kinds: int) -> list[Places]:
    """Return [pieces and scales, experts]: places of all parts of a layer (by tensor), then of all their scales."""
    parts = [(part, tensor.kind) for own, tensor in zip(layer, tensors, strict=True) for part in own]
    pieces = [_pad_kinds(part.at, kind, kinds) for part, kind in parts]
    return pieces + [_pad_kinds(part.scales.at, kind, kinds) for part, kind in parts if part.scales is not None]


def _pad_kinds(at: Places, kind: int, kinds: int) -> Places:
    """Return places of all experts, zeros for those of other kinds."""
    empty = [(0, 0)] * len(at)
    return empty * kind + at + empty * (kinds - kind - 1)


def number_variants(variants: list[list[Piece]]) -> tuple[list[Piece], list[list[int]]]:
    """Return the pieces of all variants, numbered on, and for each variant its columns of the place table.

    There the columns of all pieces come first, then those of all scales.
    """
    pieces: list[Piece] = []
    columns: list[list[int]] = []
    scales_place = sum(map(len, variants))
    for variant, own in enumerate(variants):
        own_columns = list(range(len(pieces), len(pieces) + len(own)))
        for piece in own:
            scales = piece.scales
            if scales is not None:
                scales = msgspec.structs.replace(scales, place=scales_place)
                own_columns.append(scales_place)
                scales_place += 1
            pieces.append(msgspec.structs.replace(piece, scales=scales, variant=variant))
        columns.append(own_columns)
    return pieces, columns


def make_piece(number: int, tensor: SlotTensor, part: ExpertPart, at: int, scales_place: int) -> Piece:
    """Return the piece for a part, `at` bytes into slot tensor `number`, its scales in column `scales_place`.

    Raises CheckpointError for a type that cannot be converted.
    """
    _check_dtype(tensor.name, part)
    items = math.prod(part.shape)
    return Piece(
        tensor=number,
        position_bytes=at,
        count_bytes=items * DTYPE_BYTES[tensor.dtype],
        source_bytes=_stored_bytes(part.dtype, items),
        source_dtype=part.dtype,
        source_shape=part.shape,
        operation=part.rearranged or ("copy" if part.dtype == tensor.dtype else "cast"),
        scales=_scales(part, scales_place),
    )


def _scales(part: ExpertPart, place: int) -> Scales | None:
    if part.scales is None:
        return None
    return Scales(place=place, dtype=part.scales.dtype, grid=part.scales.shape, block=part.block)


def _stored_bytes(dtype: str, items: int) -> int:
    return items // 2 if dtype == FLOAT4_PAIRS else items * DTYPE_BYTES.get(dtype, 1)


def _check_dtype(name: str, part: ExpertPart) -> None:
    if part.scales is None and part.dtype in DTYPE_BYTES:
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
