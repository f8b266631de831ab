"""Few rows with packed matrices by dots of whole numbers: near float64 on the unrounded values, row by row."""

from __future__ import annotations

import pytest
import torch
from expertflow.workers.kernels import native
from expertflow.workers.kernels.native import MAX_DOT_ROWS, NativeKernels, Weight
from expertflow.workers.kernels.packed_matrix import PackedMatrix

from ..checks import draw, guarded
from .made import GGUF_FORMATS, Layout, Made, make

DOTS = {"amx_dots": "amx", "avx512_bf16_dots": "avx512_bf16", "avx512_dots": "avx512"}
"""Variant -> the one that computes what has more rows."""
ROUNDING, SUM_ERROR = 2.0**-8, 1e-6
"""Of a bfloat16 result, and of a float32 sum, relative to the sum of the magnitudes of its terms."""
SPAN, LARGEST = 64, 32639
"""Columns of a row that share a factor, and what the largest of them becomes: a value is off by half of one at most."""
LAYOUTS = [
    Layout("float4", 37, 1088, "exponent", 1, 32),
    Layout("float4", 34, 1088, "float8_e4m3", 1, 16, parts=2),
    Layout("int4", 37, 1088, "float16", 1, 32),
    Layout("int4", 37, 1088, "float32", 1, 64, has_zeros=True),
    Layout("int4", 37, 1088, "bfloat16", 3, 0),
    Layout("int4", 37, 1152, "bfloat16", 1, 128, has_zeros=True),
    Layout("int4", 37, 1536, "bfloat16", 1, 512),
    Layout("int8", 37, 1088, "float32"),
    Layout("int8", 37, 1088, "float16", 1, 32, has_zeros=True),
    *(Layout(name, 37, 1280) for name in GGUF_FORMATS),
    Layout("Q4_0", 5, 64),
]
pytestmark = pytest.mark.skipif(bool(native.missing_reason()), reason=f"no kernels: {native.missing_reason()}")


@pytest.fixture(params=DOTS)
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    found = NativeKernels.open(request.param)
    if found is None:
        pytest.skip(f"not run: this CPU has no {request.param}")
    return found


def excess(result: torch.Tensor, rows: torch.Tensor, made: Made) -> float:
    """Return how far a product is beyond its error bound; at most 0 if it is right."""
    values = torch.from_numpy(made.values).double()
    exact, magnitude = rows.double() @ values.t(), rows.double().abs() @ values.abs().t()
    largest = rows.double().abs().view(len(rows), -1, SPAN).amax(2).repeat_interleave(SPAN, 1)
    lost = largest / LARGEST / 2 @ values.abs().t()
    return float(((result.double() - exact).abs() - SUM_ERROR * magnitude - ROUNDING * exact.abs() - lost).amax())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_products_are_near_float64_and_rows_are_as_if_alone(kernels: NativeKernels, layout: Layout) -> None:
    made = make(layout)
    for count in range(1, MAX_DOT_ROWS + 1):
        rows = draw(count, count, layout.columns, dtype=torch.bfloat16)
        rows[0, 5] = 60
        found = kernels.products([made.matrix], None, [(0, count)], rows)
        assert excess(found, rows, made) <= 0
        for row in range(count):
            alone = kernels.products([made.matrix], None, [(0, 1)], rows[row : row + 1])
            assert torch.equal(alone[0], found[row])


def test_values_are_not_rounded_to_16_bits(kernels: NativeKernels) -> None:
    """One row with a single one in it gives a column: nearer to the values than their bfloat16 is."""
    made = make(Layout("int4", 32, 64, "float32", 1, 32))
    rows = torch.zeros(1, 64, dtype=torch.bfloat16)
    rows[0, 7] = 1
    found = kernels.products([made.matrix], [torch.zeros(32, dtype=torch.bfloat16)], [(0, 1)], rows)
    assert torch.equal(found[0], made.rounded(torch.bfloat16)[:, 7])


def test_more_rows_and_other_types_are_unpacked(kernels: NativeKernels) -> None:
    usual = NativeKernels.open(DOTS[kernels.isa])
    assert usual is not None
    made = make(Layout("Q4_0", 40, 128))
    for count, dtype in ((MAX_DOT_ROWS + 1, torch.bfloat16), (1, torch.float32), (2, torch.float16)):
        rows = draw(1, count, 128, dtype=dtype)
        found = kernels.products([made.matrix], None, [(0, count)], rows)
        assert torch.equal(found, usual.products([made.matrix], None, [(0, count)], rows))


@pytest.mark.parametrize("name", ["int4", "Q4_K", "Q8_0"])
@pytest.mark.parametrize("threads", [1, 2])
def test_experts_of_few_and_many_rows_share_a_call(kernels: NativeKernels, name: str, threads: int) -> None:
    """Packed and dense matrices too: each as if it were alone, and near float64 on the unrounded values."""
    first, down = Layout(name, 512, 320 if name != "Q4_K" else 512), Layout(name, 320 if name != "Q4_K" else 512, 256)
    if name == "int4":
        first, down = (layout._replace(scale_dtype="float16", group_columns=32) for layout in (first, down))
    made = [(make(first, seed), make(down, seed + 9)) for seed in range(4)]
    experts: list[dict[str, Weight]] = [{"gate_up_proj": up.matrix, "down_proj": own.matrix} for up, own in made]
    experts[2] = {**experts[2], "down_proj": made[2][1].rounded(torch.bfloat16)}
    bounds, rows = [(0, 1), (1, 4), (4, 6), (6, 40)], draw(3, 40, first.columns, dtype=torch.bfloat16) / 16
    found, before = torch.empty_like(rows), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        kernels.experts("silu", experts, bounds, rows, found)
    finally:
        torch.set_num_threads(before)
    for one, (up, own), (low, high) in zip(experts, made, bounds, strict=True):
        alone = torch.empty(high - low, first.columns, dtype=torch.bfloat16)
        kernels.experts("silu", [one], [(0, high - low)], rows[low:high], alone)
        assert torch.equal(alone, found[low:high])
        gate, value = (rows[low:high].double() @ torch.from_numpy(up.values).double().t()).chunk(2, dim=1)
        exact = torch.nn.functional.silu(gate) * value @ torch.from_numpy(own.values).double().t()
        assert (alone.double() - exact).abs().max() < 1.2e-2 * exact.abs().max()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_stays_in_its_row(kernels: NativeKernels, value: float) -> None:
    made, rows = make(Layout("Q4_0", 40, 640)), draw(0, 3, 640, dtype=torch.bfloat16)
    clean = kernels.products([made.matrix], None, [(0, 3)], rows)
    rows[1, 600] = value
    result = kernels.products([made.matrix], None, [(0, 3)], rows)
    assert not result[1].isfinite().any() and torch.equal(result[[0, 2]], clean[[0, 2]])


def test_rows_of_zeros_give_zeros(kernels: NativeKernels) -> None:
    made, rows = make(Layout("Q5_K", 40, 512)), torch.zeros(2, 512, dtype=torch.bfloat16)
    assert (kernels.products([made.matrix], None, [(0, 2)], rows) == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nothing_beyond_the_codes_is_read(kernels: NativeKernels, layout: Layout) -> None:
    made = make(layout)
    held, memories = dict(made.matrix._held), []
    for key, tensor in held.items():
        held[key], memory = guarded(tensor)
        memories.append(memory)
    rows = draw(1, 1, layout.columns, dtype=torch.bfloat16)
    rows, _memory = guarded(rows)
    found = kernels.products([PackedMatrix(made.matrix.packing, held)], None, [(0, 1)], rows)
    assert torch.equal(found, kernels.products([made.matrix], None, [(0, 1)], rows))
