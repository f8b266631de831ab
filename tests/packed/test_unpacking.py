"""Matrices of every format, unpacked by torch, by numpy in rows, and by a formula for each value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from expertflow.tests.checkpoint.test_casting import TYPES, bits
from expertflow.workers.checkpoint.row_conversion import cast
from expertflow.workers.kernels.unpacking import Unpacker, unpack_matrix
from expertflow.workers.packed.packing import Packing
from expertflow.workers.packed.unpacking import unpack_rows
from hypothesis import given, settings
from hypothesis import strategies as st

SCALES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3": torch.float8_e4m3fn,
    "exponent": torch.float8_e8m0fnu,
}
FLOAT4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


@st.composite
def packings(draw: st.DrawFn) -> Packing:
    form = draw(st.sampled_from(["float8", "float4", "int4", "int8"]))
    rows, columns = draw(st.integers(1, 9)), 2 * draw(st.integers(1, 12))
    zeros, whole = draw(st.booleans()) and form.startswith("int"), form == "float4" and draw(st.booleans())
    return Packing(
        parameter="p",
        format=form,
        rows=rows,
        columns=columns,
        codes="codes",
        scales="scales",
        scale_dtype=draw(st.sampled_from(list(SCALES))),
        group_rows=draw(st.integers(1, rows)),
        group_columns=draw(st.integers(1, columns)),
        zeros="zeros" if zeros else "",
        tensor_scale="whole" if whole else "",
        order="order" if draw(st.booleans()) else "",
        transposed=draw(st.booleans()),
    )


def parts_of(packing: Packing, seed: int) -> dict[str, torch.Tensor]:
    """Random codes, all exponents but those above any float32, zero points and an order."""
    random = torch.Generator().manual_seed(seed)
    grid = packing.grid
    stored = torch.randint(0, 250, grid, generator=random, dtype=torch.uint8)
    scales = stored if packing.scale_dtype == "exponent" else torch.randn(grid, generator=random)
    held = scales if packing.scale_dtype == "exponent" else scales.to(SCALES[packing.scale_dtype])
    return {
        "codes": torch.randint(0, 256, (packing.rows, packing.row_bytes), generator=random, dtype=torch.uint8),
        "scales": held.view(torch.uint8) if packing.scale_dtype == "float8_e4m3" else held,
        "zeros": torch.randint(0, 16, grid, generator=random).to(
            torch.int8 if packing.format == "int8" else torch.uint8
        ),
        "whole": torch.rand(1, generator=random) + 0.5,
        "order": torch.randint(0, grid[1], (packing.columns,), generator=random, dtype=torch.int32),
    }


def value(packing: Packing, parts: dict[str, torch.Tensor], row: int, column: int) -> torch.Tensor:
    """One value by the text of `Packing`."""
    group = row // packing.group_rows, column // packing.group_columns
    if packing.order:
        group = group[0], int(parts["order"][column])
    per_byte = packing.columns // packing.row_bytes
    byte = int(parts["codes"][row, column // per_byte])
    nibble = byte >> 4 if column % 2 else byte & 15
    zero = float(parts["zeros"][group]) if packing.zeros else 8.0 if packing.format == "int4" else 0.0
    code = {
        "float8": lambda: float(torch.tensor([byte], dtype=torch.uint8).view(torch.float8_e4m3fn).float()),
        "float4": lambda: FLOAT4[nibble & 7] * (-1 if nibble & 8 else 1),
        "int4": lambda: nibble - zero,
        "int8": lambda: (byte ^ 128) - 128 - zero,
    }[packing.format]()
    scale = parts["scales"][group].reshape(1)
    if packing.scale_dtype in ("exponent", "float8_e4m3"):
        scale = scale.view(SCALES[packing.scale_dtype])
    scale = scale.float() / parts["whole"] if packing.tensor_scale else scale.float()
    return torch.tensor(code, dtype=torch.float32) * scale


@given(packings(), st.integers(0, 2**16))
def test_both_ways_give_the_value_of_the_text(packing: Packing, seed: int) -> None:
    parts = parts_of(packing, seed)
    ours = unpack_matrix(packing, parts)
    expected = torch.cat(
        [value(packing, parts, row, column) for row in range(packing.rows) for column in range(packing.columns)]
    )
    assert torch.equal(torch.nan_to_num(ours.reshape(-1)), torch.nan_to_num(expected))
    plain = {name: as_numpy(part) for name, part in parts.items()}
    for at in range(packing.rows):
        one = unpack_rows(packing, plain, range(at, at + 1))
        assert np.array_equal(one[0], ours[at].numpy(), equal_nan=True)


def as_numpy(part: torch.Tensor) -> np.ndarray:
    return (part.view(torch.uint16) if part.dtype == torch.bfloat16 else part).numpy()


@pytest.mark.parametrize("dtype", [name for name in TYPES if name != "float64"])
@settings(max_examples=30)
@given(packing=packings(), seed=st.integers(0, 2**16))
def test_rounded_once_and_turned(dtype: str, packing: Packing, seed: int) -> None:
    """The next expert takes the memory of the last one."""
    unpacker = Unpacker([packing], TYPES[dtype])
    for offset in (0, 1):
        parts = parts_of(packing, seed + offset)
        single = unpack_matrix(packing, parts)
        expected = torch.from_numpy(cast(single.numpy(), "float32", dtype)).view(TYPES[dtype])
        held = {name: parts[name] for name in packing.tensors}
        found = unpacker.unpack({**held, "bias": parts["whole"]})
        assert found["bias"] is parts["whole"] and list(found) == ["bias", "p"]
        assert list(found["p"].shape) == packing.shape and found["p"].is_contiguous()
        matrix = found["p"].t() if packing.transposed else found["p"]
        same = bits(matrix.contiguous()) == bits(expected)
        assert bool((same | expected.isnan()).all())
