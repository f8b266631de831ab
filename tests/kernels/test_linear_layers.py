"""Linear layers of a skeleton run by the table: near the library's layer, whatever the kernel, rows and bias."""

from __future__ import annotations

import pytest
import torch
from expertflow.tests.kernels.forced import forced_or_skip
from expertflow.workers.compute.skeleton import StreamedLinear, stream_linears
from expertflow.workers.kernels.dispatch import Kernels
from expertflow.workers.kernels.table import KERNELS, LEFT_FACTOR, LINEAR, NATIVE, KernelTable, LinearShape
from torch import nn

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BOUND = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def layer(dtype: torch.dtype, bias: bool) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(37, 29, bias=bias).to(dtype)


def streamed(plain: nn.Linear, choices: list[str], isa: str = "") -> nn.Module:
    shape = LinearShape(29, 37, str(plain.weight.dtype).removeprefix("torch."))
    model = nn.Sequential(plain)
    stream_linears(model, Kernels(KernelTable(isa=isa, choices={shape.key: choices})))
    assert type(model[0]) is StreamedLinear
    return model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_layer_is_near_the_librarys_at_any_number_of_rows(kernel: str, dtype: torch.dtype, bias: bool) -> None:
    native = forced_or_skip(kernel)
    ours = streamed(layer(dtype, bias), [kernel] * 10, "" if native is None else native.isa)
    exact = layer(dtype, bias).double()
    with torch.inference_mode():
        for size in ([1, 1], [2, 3], [7], [1, 65], [0]):
            rows = torch.randn(*size, 37, generator=torch.Generator().manual_seed(1)).to(dtype)
            out, expected = ours(rows), exact(rows.double())
            assert out.shape == expected.shape and out.dtype == dtype and out.is_contiguous()
            scale = max(float(expected.abs().max()), 1.0) if expected.numel() else 1.0
            assert not expected.numel() or float((out.double() - expected).abs().max()) < BOUND[dtype] * scale


def test_each_number_of_rows_has_the_kernel_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen once for each number of rows, never again."""
    asked: list[int] = []
    choose = KernelTable.kernel_for
    monkeypatch.setattr(KernelTable, "kernel_for", lambda *words: (asked.append(words[2]), choose(*words))[1])
    ours = streamed(layer(torch.bfloat16, False), [LINEAR, LEFT_FACTOR] + [LINEAR] * 8)
    reference = layer(torch.bfloat16, False)
    with torch.inference_mode():
        for count in (1, 3, 1, 3, 5):
            rows = torch.randn(count, 37).bfloat16()
            assert (ours(rows).float() - reference(rows).float()).abs().max() < 0.05
    assert asked == [1, 3, 5]


def test_rows_of_another_dtype_are_an_error_not_a_wrong_result() -> None:
    native = forced_or_skip(NATIVE)
    ours = streamed(layer(torch.bfloat16, False), [NATIVE] * 10, native.isa if native else "")
    with torch.inference_mode(), pytest.raises(TypeError, match="rows are torch.float32"):
        ours(torch.randn(1, 37))
