"""Every kernel, forced: no bit depends on where an expert lies, when it comes, or what shares its call (I1a)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from expertflow.tests.kernels.forced import EXPERTS, OddLayer
from expertflow.workers.compute.experts import layer as layers
from expertflow.workers.kernels.products import run_rows
from expertflow.workers.kernels.table import KERNELS, NATIVE, step_index

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDTHS = ((37, 29), (64, 24), (131, 70))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "inner"), WIDTHS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_order_and_the_place_of_experts_change_no_bit(
    kernel: str, width: int, inner: int, dtype: torch.dtype
) -> None:
    """For every number of rows from 1 to 64, beside experts with other numbers."""
    layer = OddLayer(kernel, dtype, width, inner)
    for rows in range(1, 65):
        counts = [rows, 1, 65 - rows, 0, 3, rows % 7]
        layer.feed.random = None
        expected = layer.run(counts)
        layer.feed.random = np.random.default_rng(rows)
        layer.feed.move()
        assert torch.equal(layer.run(counts), expected), rows


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_activation_that_the_native_kernels_do_not_know(dtype: torch.dtype) -> None:
    """It is torch's, expert by expert: the last elements of one big tensor would have other bits."""
    layer = OddLayer(NATIVE, dtype, 45, 13, activation="mish")
    for rows in (1, 2, 3, 9, 33, 64):
        counts = [rows, 1, 65 - rows, 0, 3, rows % 7]
        layer.feed.random = None
        expected = layer.run(counts)
        layer.feed.random = np.random.default_rng(rows)
        layer.feed.move()
        assert torch.equal(layer.run(counts), expected), rows
    assert max(layer.feed.sizes) > 1
    by_library = OddLayer("linear", dtype, 45, 13, activation="mish")
    bound = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-5}[dtype]
    difference = (by_library.run([5, 2, 7, 1, 0, 3]) - layer.run([5, 2, 7, 1, 0, 3])).abs().max()
    assert difference < bound * by_library.run([5, 2, 7, 1, 0, 3]).abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_layer_is_near_what_the_library_computes_in_float32(kernel: str, dtype: torch.dtype) -> None:
    layer = OddLayer(kernel, dtype, 64, 24)
    counts = [1, 2, 5, 17, 40, 70]
    ours = layer.run(counts).float()
    exact = OddLayer("linear", torch.float32, 64, 24)
    for mine, theirs in zip(layer.feed.experts, exact.feed.experts, strict=True):
        for name, weight in mine.items():
            theirs[name].copy_(weight)
    whole = exact.run(counts, like=dtype)
    bound = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-5}[dtype]
    assert (ours - whole).abs().max() < bound * whole.abs().max()


@pytest.mark.parametrize("kernel", KERNELS)
def test_experts_of_the_native_kernel_share_a_call_and_others_do_not(kernel: str) -> None:
    layer = OddLayer(kernel, torch.bfloat16, 64, 24)
    layer.feed.random = np.random.default_rng(0)
    layer.run([4] * EXPERTS)
    assert set(layer.feed.together[0]) == (set(range(EXPERTS)) if kernel == NATIVE else set())
    assert (max(layer.feed.sizes) > 1) == (kernel == NATIVE)


def test_kernels_of_one_layer_may_differ_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """An expert with few rows by one kernel, one with many by another."""
    layer = OddLayer("left_factor", torch.bfloat16, 64, 24)
    layer.choices[step_index(40) :] = ["float32_tiles"] * (10 - step_index(40))
    layer.bind()
    seen: list[tuple[int, str]] = []
    run = layers.run_expert
    monkeypatch.setattr(layers, "run_expert", lambda *words: (seen.append((len(words[2]), words[3])), run(*words))[1])
    layer.run([0, 3, 41])
    assert seen == [(3, "left_factor"), (41, "float32_tiles")], "and 41 rows are not padded"


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_are_padded_by_a_function_of_rows_alone(kernel: str) -> None:
    layer = OddLayer(kernel, torch.bfloat16, 64, 24)
    assert [layer.kernels.run_rows(rows) for rows in range(1, 65)] == [run_rows(rows, kernel) for rows in range(1, 65)]
