"""Casts agree with torch for every kind of value; pieces come out the same in whatever blocks they are converted."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
import torch
from expertflow.workers.checkpoint.row_conversion import cast, convert_rows, row_blocks
from expertflow.workers.checkpoint.survey import Piece
from hypothesis import given, settings
from hypothesis import strategies as st

TYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NUMPY = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
PAIRS = list(itertools.product(TYPES, TYPES))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Raw bits, with one pattern for all NaNs: torch itself gives different ones from its vector and scalar code."""
    whole = {8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.dtype.itemsize]
    return torch.where(tensor.isnan(), torch.tensor(-1, dtype=whole), tensor.view(whole))


def raw(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def assert_cast_as_torch(values: torch.Tensor, target: str) -> None:
    source = str(values.dtype).removeprefix("torch.")
    ours = cast(raw(values).view(NUMPY[source]), source, target)
    theirs = values.to(TYPES[target])
    mine = torch.from_numpy(ours.copy().view(np.uint8)).view(TYPES[target])
    assert torch.equal(bits(mine), bits(theirs.reshape(-1)))


def special(dtype: torch.dtype) -> torch.Tensor:
    """Zeros, infinities, NaNs, subnormals, the ends of the range, and ties of every narrower type, with both signs."""
    info = torch.finfo(dtype)
    tiny = [torch.finfo(kind).tiny * scale for kind in TYPES.values() for scale in (1, 0.5, 2**-5, 1.5)]
    steps = [torch.finfo(kind).eps * scale for kind in TYPES.values() for scale in (0.25, 0.5, 0.75, 1, 1.5, 2.5)]
    edges = [torch.finfo(kind).max * scale for kind in TYPES.values() for scale in (1, 1 + 2**-12, 1 + 2**-9, 0.5)]
    ties = [1 + step for step in steps]
    ties += [1 + torch.finfo(kind).eps / 2 + 2**-40 for kind in TYPES.values()]  # ties only after a first rounding
    values = [0.0, float("inf"), float("nan"), info.smallest_normal, info.max, *tiny, *edges, *ties]
    single = torch.tensor([*values, *(-value for value in values)], dtype=torch.float64)
    return torch.cat([single.to(dtype), torch.nextafter(single.to(torch.float32), torch.tensor(0.0)).to(dtype)])


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_special_values_are_cast_as_torch_casts_them(source: str, target: str):
    assert_cast_as_torch(special(TYPES[source]), target)


@pytest.mark.parametrize("target", list(TYPES))
@pytest.mark.parametrize("source", ["float16", "bfloat16"])
def test_every_value_of_the_half_types(source: str, target: str):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    assert_cast_as_torch(every.view(TYPES[source]), target)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=50), st.sampled_from(sorted(TYPES)))
@settings(deadline=None)
def test_any_bits_of_float32(patterns: list[int], target: str):
    assert_cast_as_torch(torch.tensor(patterns, dtype=torch.int32).view(torch.float32), target)


def piece_of(values: torch.Tensor, dtype: str, operation: Literal["copy", "cast", "transpose"]) -> Piece:
    return Piece(
        tensor=0,
        position_bytes=0,
        count_bytes=values.numel() * TYPES[dtype].itemsize,
        source_bytes=values.nbytes,
        source_dtype=str(values.dtype).removeprefix("torch."),
        source_shape=list(values.shape),
        operation=operation,
    )


@pytest.mark.parametrize("limit_bytes", [1, 40, 100, 10**6])
@pytest.mark.parametrize("operation", ["cast", "transpose"])
@pytest.mark.parametrize("target", ["float32", "bfloat16"])
@pytest.mark.parametrize("shift", [0, 1])
def test_blocks_of_rows_add_up(limit_bytes: int, operation: Literal["cast", "transpose"], target: str, shift: int):
    """Also into a target at an odd address, and with a limit below one row."""
    values = torch.randn(7, 5).to(torch.float16)
    piece = piece_of(values, target, operation)
    out = np.zeros(piece.count_bytes + 1, dtype=np.uint8)[shift:][: piece.count_bytes]
    blocks = row_blocks(piece, limit_bytes)
    for rows in reversed(blocks):
        convert_rows(raw(values[rows.start : rows.stop]), out, piece, rows, target)
    expected = (values.t() if operation == "transpose" else values).to(TYPES[target])
    assert out.tobytes() == raw(expected).tobytes()
    assert all(len(rows) * 10 <= max(limit_bytes, 10) for rows in blocks)


def test_a_vector_is_converted_in_blocks_too():
    values = torch.randn(100)
    piece = piece_of(values, "bfloat16", "cast")
    out = np.zeros(piece.count_bytes, dtype=np.uint8)
    blocks = row_blocks(piece, 64)
    assert len(blocks) == 7
    for rows in blocks:
        convert_rows(raw(values[rows.start : rows.stop]), out, piece, rows, "bfloat16")
    assert out.tobytes() == raw(values.bfloat16()).tobytes()
