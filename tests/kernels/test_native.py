"""The C kernels: every variant that this CPU runs, against float64, and a row's bits whatever else a call holds."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import expertflow
import pytest
import torch
from expertflow.workers.kernels import library, native
from expertflow.workers.kernels.native import DTYPES, Job, NativeKernels
from expertflow.workers.kernels.packed_matrix import PackedFields
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from .checks import check_products, draw, experts_of, guarded, largest_excess

SOURCES = Path(expertflow.__file__).parent / "workers" / "kernels" / "native"
ALL_VARIANTS = ("amx", "avx512_bf16", "avx512", "avx2")
BASELINES = {"silu": functional.silu, "gelu": functional.gelu, "relu": functional.relu}
BASELINES["gelu_tanh"] = lambda values: functional.gelu(values, approximate="tanh")
BASELINES["relu_squared"] = lambda values: functional.relu(values) ** 2

pytestmark = pytest.mark.skipif(bool(native.missing_reason()), reason=f"no kernels: {native.missing_reason()}")


@pytest.fixture(params=ALL_VARIANTS)
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    found = NativeKernels.open(request.param)
    if found is None:
        pytest.skip(f"not run: this CPU has no {request.param}")
    return found


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_library_is_built_where_there_is_a_compiler() -> None:
    """Else every other test of this file would be skipped, and nobody would know."""
    assert native.missing_reason() == ""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 3), (37, 83), (33, 513), (96, 1030)])
def test_every_number_of_rows(kernels: NativeKernels, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Odd widths; alone, in a block, beside others, and more rows than one pass takes."""
    for counts in ([1, 2, 3, 4, 5, 6, 7], [8, 0, 13, 16, 17], [64, 1], [260]):
        check_products(kernels, dtype, shape, counts)


@settings(max_examples=60, deadline=None)
@given(
    out=st.integers(1, 150),
    width=st.integers(1, 1200),
    rows=st.integers(0, 70),
    biased=st.booleans(),
    dtype=st.sampled_from(list(DTYPES)),
    variant=st.sampled_from(ALL_VARIANTS),
)
def test_a_product_is_near_float64(
    out: int, width: int, rows: int, biased: bool, dtype: torch.dtype, variant: str
) -> None:
    found = NativeKernels.open(variant)
    if found is None:
        return
    weight, taken = draw(0, out, width, dtype=dtype), draw(1, rows, width, dtype=dtype)
    bias = draw(2, out, dtype=dtype) if biased else None
    result = found.linear(taken, weight, bias)
    assert result.shape == (rows, out) and result.dtype == dtype
    assert largest_excess(result, taken, weight, bias) <= 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [True, False])
def test_a_bound_product_is_the_same(kernels: NativeKernels, dtype: torch.dtype, biased: bool) -> None:
    weight, bias = draw(0, 40, 83, dtype=dtype), draw(1, 40, dtype=dtype) if biased else None
    bound = kernels.bound_linear(weight, bias)
    for count in (1, 0, 7, 3):
        rows = draw(count, count, 2 * 83, dtype=dtype)[:, ::2]
        assert torch.equal(bound(rows), kernels.linear(rows, weight, bias))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_beyond_a_weight_is_read(kernels: NativeKernels, dtype: torch.dtype) -> None:
    """The last expert of the slots may end where the memory does. A read beyond would end the process."""
    for out, width in ((5, 3), (33, 83), (64, 513)):
        weight = draw(0, out, width, dtype=dtype)
        held, _memory = guarded(weight)
        rows = draw(1, 9, width, dtype=dtype)
        assert torch.equal(kernels.linear(rows, held), kernels.linear(rows, weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_where_a_weight_begins(kernels: NativeKernels, dtype: torch.dtype) -> None:
    weight, rows = draw(0, 40, 130, dtype=dtype), draw(1, 11, 130, dtype=dtype)
    expected = kernels.linear(rows, weight)
    for shift in (1, 3, 8):
        room = torch.zeros(weight.numel() + shift, dtype=dtype)
        room[shift:] = weight.flatten()
        assert torch.equal(kernels.linear(rows, room[shift:].view(weight.shape)), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_threads(kernels: NativeKernels, threads: int) -> None:
    weight, rows = draw(0, 300, 700, dtype=torch.bfloat16), draw(1, 400, 700, dtype=torch.bfloat16)
    expected, before = kernels.linear(rows, weight), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(kernels.linear(rows, weight), expected)
    finally:
        torch.set_num_threads(before)


def test_rows_and_results_may_be_parts_of_wider_tensors(kernels: NativeKernels) -> None:
    wide, weight = draw(0, 6, 100, dtype=torch.float32), draw(1, 20, 40, dtype=torch.float32)
    assert torch.equal(kernels.linear(wide[:, 30:70], weight), kernels.linear(wide[:, 30:70].contiguous(), weight))
    assert torch.equal(kernels.linear(wide[:, 60::1].t()[:, :6].t(), weight), kernels.linear(wide[:, 60:], weight))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_value_that_is_no_number_stays_in_its_row(kernels: NativeKernels, dtype: torch.dtype, value: float) -> None:
    rows, weight = draw(0, 7, 50, dtype=dtype), draw(1, 40, 50, dtype=dtype)
    clean = kernels.linear(rows, weight)
    rows[3, 49] = value
    result = kernels.linear(rows, weight)
    assert not result[3].isfinite().any()
    assert torch.equal(result[[0, 1, 2, 4, 5, 6]], clean[[0, 1, 2, 4, 5, 6]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", BASELINES)
def test_experts_against_float64(kernels: NativeKernels, dtype: torch.dtype, gated: bool, activation: str) -> None:
    """Gate, up, activation and down in one call; every expert as if it were alone."""
    inner, width, counts = 37, 83, (3, 1, 40, 17)
    weights = [experts_of(10 * i, inner, width, gated, activation == "silu", dtype) for i in range(len(counts))]
    bounds, low = [], 0
    for count in counts:
        bounds.append((low, low + count))
        low += count
    rows = draw(7, low + 5, width, dtype=dtype)
    products = torch.full((low + 5, width), 3.0, dtype=dtype)
    kernels.experts(activation, weights, bounds, rows, products)
    assert (products[low:] == 3).all()
    for own, (first, last) in zip(weights, bounds, strict=True):
        alone = torch.empty(last - first, width, dtype=dtype)
        kernels.experts(activation, [own], [(0, last - first)], rows[first:last], alone)
        assert torch.equal(alone, products[first:last])
        exact = _expert_in_float64(own, rows[first:last], activation)
        tolerance = {torch.float32: 2e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}[dtype]
        assert (alone.double() - exact).abs().max() < tolerance * exact.abs().max()


def _expert_in_float64(weights: dict[str, torch.Tensor], rows: torch.Tensor, activation: str) -> torch.Tensor:
    name = "gate_up_proj" if "gate_up_proj" in weights else "up_proj"
    own = {key: value.double() for key, value in weights.items()}
    hidden = rows.double() @ own[name].t() + own.get(f"{name}_bias", torch.zeros(1))
    inner = own["down_proj"].shape[1]
    active = BASELINES[activation](hidden[:, :inner])
    active = active * hidden[:, inner:] if name == "gate_up_proj" else active
    return active @ own["down_proj"].t() + own.get("down_proj_bias", torch.zeros(1))


def test_activations_at_their_ends(kernels: NativeKernels) -> None:
    """Large, small and no numbers go through the kernels' own exponential as through torch's."""
    values = torch.tensor([-1e30, -100, -88.5, -20, -1e-30, 0, 1e-30, 20, 88.5, 100, 1e30, float("nan")])
    identity = torch.ones(1, 1)
    weights = [{"up_proj": identity, "down_proj": identity}]
    for activation, baseline in BASELINES.items():
        result = torch.empty(len(values), 1)
        kernels.experts(activation, weights, [(0, len(values))], values[:, None], result)
        torch.testing.assert_close(result[:, 0], baseline(values), rtol=2e-6, atol=1e-35, equal_nan=True)


@pytest.mark.slow
def test_the_limit_of_torch_is_the_kernels_limit_too() -> None:
    """ATEN_CPU_CAPABILITY=avx2 makes one machine stand for another: torch and the kernels follow it alike."""
    code = "from expertflow.workers.kernels.native import NativeKernels as K; k = K.open(); print(k and k.isas())"
    for limit, expected in (("avx2", "['avx2']"), ("default", "None")):
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": limit}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


FAULTS = {
    "a dropped tail": ("dot.inc", "if (whole < count)", "if (0)"),
    "a wrong expert": ("run.c", "b->begin + segment;", "b->begin;"),
    "a stale tile": ("dot.inc", "memset(sums + row * TILE, 0, outs * sizeof *sums);", ""),
    "the last rows of a weight left out": ("dot.inc", "o < outs; o += OUTS_OF", "o + 3 < outs; o += OUTS_OF"),
    "unpacked rows that replace those before": ("run.c", "room->sums[which] + part", "room->sums[which]"),
    "rows of another tile kept": ("run.c", "room->is_kept = row > 0", "room->is_kept = out > 0 || row > 0"),
    "gate and up unpacked to one place": ("run.c", "own + b->scratch_bytes / 2", "own"),
    "a zero point left out": (
        "unpack256.inc",
        "_mm256_sub_ps(_mm256_loadu_ps(meaning), shift)",
        "_mm256_loadu_ps(meaning)",
    ),
    "an offset left out": ("unpack256.inc", "_mm256_sub_ps(first, offset)", "first"),
    "the scale of another group": ("unpack.inc", "(int8_t)scales[part]", "(int8_t)scales[part / 2]"),
}
OTHERS = (
    "&variant_amx, &variant_amx_dots, &variant_avx512_bf16, &variant_avx512_bf16_dots, &variant_avx512, "
    "&variant_avx512_dots, "
)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_kernels_is_found(fault: str, tmp_path: Path) -> None:
    """The checks above, on AVX2 kernels with a fault compiled in: they must fail."""
    file, before, after = FAULTS[fault]
    folder = shutil.copytree(SOURCES, tmp_path / "sources")
    _replace(folder / file, before, after)
    _replace(folder / "run.c", OTHERS, "")
    library = str(tmp_path / "faulty.so")
    sources = [str(folder / name) for name in ("run.c", "avx2.c")]
    subprocess.run(["cc", "-O0", "-w", "-fPIC", "-shared", *sources, "-lm", "-o", library], check=True)
    checks = [sys.executable, "-P", "-m", "expertflow.tests.kernels.faulty", library]
    assert subprocess.run(checks, check=False).returncode == 1


def _replace(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text, f"{before!r} is not in {file.name} any more"
    file.write_text(text.replace(before, after))


def test_structures_are_as_long_as_the_library_takes_them() -> None:
    """A library that was built for another version is not used, and `doctor` says to build it again."""
    assert (ctypes.sizeof(Job) << 16) | ctypes.sizeof(PackedFields) == library.LAYOUT
    assert library.absence() in ("", library.NOT_BUILT)


def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    if library.library_file() is None:
        pytest.skip(library.NOT_BUILT)
    monkeypatch.setattr(library, "LAYOUT", library.LAYOUT + 8)
    assert library.absence.__wrapped__() == library.OTHER_VERSION
