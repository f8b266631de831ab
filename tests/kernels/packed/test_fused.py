"""Experts that are multiplied packed: bit for bit the kernels' results on the unpacked values."""

from __future__ import annotations

import pytest
import torch
from expertflow.workers.kernels import native
from expertflow.workers.kernels.native import DTYPES, NativeKernels, Weight

from ..checks import draw, guarded
from .fused import check_fused, experts_of, layouts_of
from .made import GGUF_FORMATS, GROUPED_FORMATS, Layout, make

VARIANTS = ("amx", "avx512_bf16", "avx512", "avx2")
FORMATS = (*GROUPED_FORMATS, *GGUF_FORMATS)
pytestmark = pytest.mark.skipif(bool(native.missing_reason()), reason=f"no kernels: {native.missing_reason()}")


@pytest.fixture(params=VARIANTS)
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    found = NativeKernels.open(request.param)
    if found is None:
        pytest.skip(f"not run: this CPU has no {request.param}")
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMATS)
def test_experts_of_every_format(kernels: NativeKernels, name: str, dtype: torch.dtype) -> None:
    """Several experts in one call, with and without a gate; few rows, a block, more than one pass takes."""
    for is_gated in (True, False):
        check_fused(kernels, name, dtype, is_gated, (1, 3, 0, 17))
    check_fused(kernels, name, dtype, True, (300, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_and_packed_experts_share_a_call(kernels: NativeKernels, dtype: torch.dtype) -> None:
    """Layers of mixed precision: one expert is packed, one is not, one has a packed matrix and a dense one."""
    first, down = layouts_of("Q8_0", True)
    packed = experts_of((first, down), 0), experts_of(layouts_of("int4", True), 1)
    dense = [{name: kernels.unpack(matrix, dtype) for name, matrix in one.items()} for one in packed]
    mixed: dict[str, Weight] = {**packed[0], "down_proj": dense[0]["down_proj"]}
    rows, bounds = draw(0, 12, first.columns, dtype=dtype) / 256, [(0, 3), (3, 8), (8, 12)]
    found, expected = torch.empty_like(rows), torch.empty_like(rows)
    kernels.experts("silu", [mixed, dense[1], packed[1]], bounds, rows, found)
    kernels.experts("silu", [dense[0], dense[1], dense[1]], bounds, rows, expected)
    assert torch.equal(found, expected) and found.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_take_packed_weights(kernels: NativeKernels, dtype: torch.dtype) -> None:
    made = [make(Layout("int4", 83, 96, "float16", 1, 32, has_zeros=True), seed) for seed in (0, 1)]
    rows, bounds = draw(0, 9, 96, dtype=dtype), [(0, 2), (2, 9)]
    bias = [draw(seed, 83, dtype=dtype) for seed in (2, 3)]
    found = kernels.products([one.matrix for one in made], bias, bounds, rows)
    assert torch.equal(found, kernels.products([one.rounded(dtype) for one in made], bias, bounds, rows))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_threads(kernels: NativeKernels, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_fused(kernels, "Q4_0", torch.bfloat16, True, (1, 40, 7))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_beyond_the_codes_is_read(kernels: NativeKernels, name: str) -> None:
    """The last expert of the slots may end where the memory does. A read beyond would end the process."""
    first, _ = layouts_of(name, False)
    made = make(first)
    held, memories = dict(made.matrix._held), []
    for key, tensor in held.items():
        held[key], memory = guarded(tensor)
        memories.append(memory)
    matrix = type(made.matrix)(made.matrix.packing, held)
    rows = draw(1, 5, first.columns, dtype=torch.bfloat16)
    found = kernels.products([matrix], None, [(0, 5)], rows)
    assert torch.equal(found, kernels.products([made.matrix], None, [(0, 5)], rows))
    assert torch.equal(kernels.unpack(matrix, torch.bfloat16), made.rounded(torch.bfloat16))
