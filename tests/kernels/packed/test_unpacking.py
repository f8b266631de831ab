"""The values of packed matrices by the C kernels: bit for bit those of numpy and of the `gguf` package."""

from __future__ import annotations

import pytest
import torch
from expertflow.errors import CheckpointError
from expertflow.workers.kernels import native
from expertflow.workers.kernels.native import DTYPES, NativeKernels
from expertflow.workers.kernels.packed_matrix import PackedMatrix
from expertflow.workers.packed.packing import GGUF_BLOCKS, Packing
from hypothesis import given, settings
from hypothesis import strategies as st

from .made import GGUF_FORMATS, GROUPED_FORMATS, SCALE_DTYPES, Layout, make

VARIANTS = ("amx", "avx512_bf16", "avx512", "avx2")
pytestmark = pytest.mark.skipif(bool(native.missing_reason()), reason=f"no kernels: {native.missing_reason()}")


def kernels_of(variant: str) -> NativeKernels:
    found = NativeKernels.open(variant)
    if found is None:
        pytest.skip(f"not run: this CPU has no {variant}")
    return found


@st.composite
def grouped_layouts(draw: st.DrawFn) -> Layout:
    """Draw a grouped format: odd rows and widths, groups that do not divide them, and everything optional."""
    name, rows = draw(st.sampled_from(GROUPED_FORMATS)), draw(st.integers(1, 70))
    columns = 2 * draw(st.integers(1, 400))
    group_columns = draw(st.sampled_from([0, 2, 7, 16, 32, 64, 128, 1000]))
    return Layout(
        name, rows, columns, draw(st.sampled_from(SCALE_DTYPES)), draw(st.sampled_from([1, 3, 128])), group_columns,
        has_zeros=name.startswith("int") and draw(st.booleans()),
        parts=draw(st.sampled_from([0, 1, rows])), is_ordered=draw(st.booleans()),
    )  # fmt: skip


def check(layout: Layout, seed: int, wild: bool, variant: str, dtype: torch.dtype) -> None:
    """Compare bits; a NaN equals any other."""
    made = make(layout, seed, wild)
    found, expected = kernels_of(variant).unpack(made.matrix, dtype), made.rounded(dtype)
    assert torch.equal(found.isnan(), expected.isnan())
    bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    assert torch.equal(found.nan_to_num(7).view(bits), expected.nan_to_num(7).view(bits))


@settings(max_examples=150, deadline=None)
@given(grouped_layouts(), st.integers(0, 99), st.booleans(), st.sampled_from(VARIANTS), st.sampled_from(list(DTYPES)))
def test_values_by_groups(layout: Layout, seed: int, wild: bool, variant: str, dtype: torch.dtype) -> None:
    check(layout, seed, wild, variant, dtype)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GGUF_FORMATS)
def test_values_of_blocks(name: str, dtype: torch.dtype, variant: str) -> None:
    """Enough blocks for every byte in every place; every scale, then those of a weight."""
    length = GGUF_BLOCKS[name][0]
    for seed, (rows, blocks) in enumerate(((1, 1), (5, 3), (37, 9), (3, 70))):
        for wild in (True, False):
            check(Layout(name, rows, length * blocks), seed, wild, variant, dtype)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layout",
    [
        Layout("int4", 40, 512, "float16", 1, 32),
        Layout("int4", 40, 512, "bfloat16", 1, 128, has_zeros=True),
        Layout("int4", 40, 1056, "float32", 1, 0),
        Layout("int4", 33, 512, "float16", 1, 64, has_zeros=True, is_ordered=True),
        Layout("int8", 40, 512, "float32"),
        Layout("int8", 40, 512, "bfloat16", 1, 128, has_zeros=True),
        Layout("float4", 40, 512, "exponent", 1, 32),
        Layout("float4", 40, 544, "float8_e4m3", 1, 16, parts=2),
        Layout("float8", 140, 1024, "float32", 128, 128),
        Layout("float8", 140, 1200, "float32", 128, 128),
        Layout("float8", 5, 1056, "bfloat16", 1, 0),
        Layout("int4", 3, 4160, "float16", 1, 32, has_zeros=True),
        Layout("float4", 3, 4160, "exponent", 1, 32),
        Layout("float4", 3, 4128, "float8_e4m3", 1, 16, parts=3),
        Layout("int4", 3, 4128, "float32", 1, 16, has_zeros=True),
        Layout("int8", 3, 4160, "float32", 1, 32),
        Layout("float8", 40, 512, "float32", 40, 512),
        Layout("float8", 40, 512, "exponent", 1, 32),
    ],
    ids=str,
)
def test_values_of_published_layouts(layout: Layout, dtype: torch.dtype, variant: str) -> None:
    for seed, wild in enumerate((False, True)):
        check(layout, seed, wild, variant, dtype)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_the_rows(threads: int) -> None:
    made, before = make(Layout("int4", 333, 256, "float32", 1, 32)), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(kernels_of("avx2").unpack(made.matrix, torch.bfloat16), made.rounded(torch.bfloat16))
    finally:
        torch.set_num_threads(before)


def test_a_group_that_does_not_exist_gives_no_number() -> None:
    made = make(Layout("int4", 3, 64, "float32", 1, 32, is_ordered=True))
    order = made.matrix._held["order"]
    order[5], order[9] = 2, -1
    values = kernels_of("avx2").unpack(made.matrix, torch.float32)
    assert values[:, [5, 9]].isnan().all() and int(values.isnan().sum()) == 6


def test_tensors_that_do_not_fit_are_refused() -> None:
    packing = Packing(
        parameter="down_proj", format="int4", rows=4, columns=64, codes="codes", scales="scales",
        scale_dtype="float16", group_columns=32,
    )  # fmt: skip
    codes, scales = torch.zeros(4, 32, dtype=torch.uint8), torch.ones(4, 2, dtype=torch.float16)
    PackedMatrix(packing, {"codes": codes, "scales": scales})
    for wrong in (codes[:3], codes.t(), codes.float()):
        with pytest.raises(CheckpointError, match="'codes', not 128 values"):
            PackedMatrix(packing, {"codes": wrong, "scales": scales})
    with pytest.raises(CheckpointError, match="'scales', not 8 values"):
        PackedMatrix(packing, {"codes": codes, "scales": scales[:, :1]})


@pytest.mark.parametrize(("name", "scale_dtype"), [("int3", "float32"), ("int4", "float64")])
def test_unknown_packings_are_refused_by_name(name: str, scale_dtype: str) -> None:
    packing = Packing(
        parameter="down_proj", format=name, rows=4, columns=64, codes="codes", scales="scales", scale_dtype=scale_dtype
    )
    with pytest.raises(CheckpointError, match="int3|float64"):
        PackedMatrix(packing, {})
