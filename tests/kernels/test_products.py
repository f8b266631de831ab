"""One expert alone and all in one call are the same product, bit for bit, and near what it should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from expertflow.workers.kernels import products as library_products
from expertflow.workers.kernels.products import PRODUCTS, may_stack, padded_rows, project, project_stack, run_rows
from expertflow.workers.kernels.table import FLOAT32_TILES, LEFT_FACTOR, LINEAR, NATIVE
from hypothesis import given, settings
from hypothesis import strategies as st

WIDTHS = (8, 16, 48, 136, 512)


def draw(out_width: int, in_width: int, counts: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(len(counts), out_width, in_width, generator=generator).bfloat16()
    rows = torch.randn(-(-sum(counts) // 8) * 8, in_width, generator=generator).bfloat16()
    return weights, rows


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("in_width", WIDTHS)
@pytest.mark.parametrize("out_width", WIDTHS)
def test_one_call_is_bit_for_bit_each_alone(out_width: int, in_width: int, strided: bool) -> None:
    """Whichever way the rows lie: what comes out of one product goes into the next (I1a)."""
    for seed in range(3):
        counts = [padded_rows(int(count)) for count in np.random.default_rng(seed).choice([0, 1, 1, 2, 3, 17, 40], 7)]
        weights, rows = draw(out_width, in_width, counts, seed)
        rows = rows.t().contiguous().t() if strided else rows
        ends = torch.tensor(np.cumsum(counts), dtype=torch.int32)
        together = project_stack(rows, weights, ends)
        for expert, (low, high) in enumerate(zip([0, *ends.tolist()], ends.tolist(), strict=False)):
            if low < high:
                own = rows[low:high].contiguous()
                assert torch.equal(project(own, weights[expert]), together[low:high])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 2, 40, 192, 193])
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_what_it_should_be(dtype: torch.dtype, rows: int, biased: bool) -> None:
    weights, inputs = draw(24, 48, [rows], 0)
    weight, taken = weights[0].to(dtype), inputs[:rows].to(dtype)
    bias = weight[:, 0].clone() if biased else None
    exact = taken.double() @ weight.double().t() + (0 if bias is None else bias.double())
    assert (project(taken, weight, bias).double() - exact).abs().max() < 1e-2 * exact.abs().max()


def test_what_may_not_be_stacked() -> None:
    """Rows that are no multiple of 16 bytes, many rows, transposed weights, other dtypes."""
    weights = torch.zeros(3, 8, 16, dtype=torch.bfloat16)
    assert may_stack(weights, 192)
    assert not may_stack(weights, 193)
    assert not may_stack(weights[:, :, :12], 1)
    assert not may_stack(weights.transpose(1, 2), 1)
    assert not may_stack(weights.float(), 1)
    assert not may_stack(weights.half(), 1)


@pytest.mark.parametrize("rows", [*range(1, 40), 100, 129, 1000, 1025])
def test_few_numbers_of_rows_occur(rows: int) -> None:
    padded = padded_rows(rows)
    assert rows <= padded <= rows * 9 / 8
    assert padded_rows(padded) == padded


def test_eight_shapes_an_octave() -> None:
    assert len({padded_rows(rows) for rows in range(257, 513)}) == 8


# Every product of the library

SEEDS = st.integers(0, 2**31)


@st.composite
def products(draw: st.DrawFn) -> tuple[str, torch.dtype, int, int, int, bool, int]:
    kernel = draw(st.sampled_from(list(PRODUCTS)))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    rows, outputs, inputs = (draw(st.integers(1, size)) for size in (70, 90, 130))
    return kernel, dtype, rows, outputs, inputs, draw(st.booleans()), draw(SEEDS)


PRECISION = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}


@settings(deadline=None)
@given(products())
def test_a_product_is_within_the_bound_of_its_dtype(case: tuple[str, torch.dtype, int, int, int, bool, int]) -> None:
    """|error| ≤ (n + 2) · u32 · Σ|x·w| for sums in float32, and one rounding to the dtype for each addition of torch.

    A library that sums in blocks may round a bfloat16 result a few times: three are allowed.
    """
    kernel, dtype, rows, outputs, inputs, biased, seed = case
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    own = torch.randn(rows, inputs, generator=generator).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype) if biased else None
    exact = own.double() @ weight.double().t()
    scale = own.double().abs() @ weight.double().abs().t()
    if bias is not None:
        exact, scale = exact + bias.double(), scale + bias.double().abs()
    error = (project(own, weight, bias, kernel).double() - exact).abs()
    rounding = 0 if dtype == torch.float32 else 3 * PRECISION[dtype]
    assert (error <= (inputs + 2) * PRECISION[torch.float32] * scale + rounding * exact.abs() + 1e-30).all() or (
        kernel != FLOAT32_TILES and (error <= 2 * PRECISION[dtype] * scale).all()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outputs", [1, 7, 8, 9, 24, 31])
def test_every_tile_counts_the_last_included(dtype: torch.dtype, outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of eight outputs: a tail that is dropped, or a tile that still holds the one before, is seen at once."""
    monkeypatch.setattr(library_products, "TILE_BYTES", 8 * 4 * 5)
    weight = (torch.arange(outputs * 5).reshape(outputs, 5) % 61 + 1).to(dtype)
    for rows in (1, 3):
        own = torch.eye(5)[:rows].to(dtype)
        assert torch.equal(project(own, weight, None, FLOAT32_TILES), weight.t()[:rows])


@pytest.mark.parametrize("kernel", list(PRODUCTS))
def test_a_result_does_not_depend_on_where_the_weight_lies(kernel: str) -> None:
    """I1a: a slot begins where the file's block asks for, at any multiple of the dtype's size."""
    for dtype in PRECISION:
        for rows in (1, 2, 5, 16, 33):
            weight = torch.randn(37, 53, generator=torch.Generator().manual_seed(rows)).to(dtype)
            own = torch.randn(rows, 53, generator=torch.Generator().manual_seed(99)).to(dtype)
            memory = torch.zeros(37 * 53 + 64, dtype=dtype)
            expected = project(own, weight, None, kernel)
            for offset in (1, 3, 8, 31):
                shifted = memory[offset : offset + 37 * 53].view(37, 53)
                shifted.copy_(weight)
                assert torch.equal(project(own, shifted, None, kernel), expected), (dtype, rows, offset)


def test_only_the_librarys_products_want_padding() -> None:
    for rows in (1, 17, 100):
        assert run_rows(rows, FLOAT32_TILES) == run_rows(rows, NATIVE) == rows
        assert run_rows(rows, LEFT_FACTOR) == run_rows(rows, LINEAR) == run_rows(rows, "") == padded_rows(rows)
