"""One expert alone and all in one call are the same product, bit for bit, and near what it should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from expertflow.workers.kernels.products import may_stack, padded_rows, project, project_stack

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
