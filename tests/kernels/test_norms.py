"""Norms of a skeleton run by the native library: the family's own results, whatever the family does with the weight."""

from __future__ import annotations

import pytest
import torch
from expertflow.workers.compute.skeleton import NativeNormMixin, shorten_norms
from expertflow.workers.kernels.library import absence
from expertflow.workers.kernels.norms import MAX_VALUES, native_norm
from torch import nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
from transformers.models.olmoe.modeling_olmoe import OlmoeRMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNorm, Qwen3NextRMSNormGated

pytestmark = pytest.mark.skipif(bool(absence()), reason=absence())

FAMILIES = (OlmoeRMSNorm, GptOssRMSNorm, Qwen3NextRMSNorm)
DTYPES = (torch.float32, torch.bfloat16)
WIDTH = 77


def norm(family: type[nn.Module], dtype: torch.dtype, width: int = WIDTH) -> nn.Module:
    torch.manual_seed(5)
    made = family(width)
    nn.init.normal_(made.weight, 1.0, 0.3)  # pyright: ignore[reportArgumentType]
    return made.to(dtype)


def rows(dtype: torch.dtype, *size: int, scale: float = 3.0) -> torch.Tensor:
    return (scale * torch.randn(*size, generator=torch.Generator().manual_seed(1))).to(dtype)


def shortened(module: nn.Module) -> nn.Module:
    model = nn.Sequential(module)
    shorten_norms(model)
    return model[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_norm_gives_what_its_family_gives(family: type[nn.Module], dtype: torch.dtype) -> None:
    ours, theirs = shortened(norm(family, dtype)), norm(family, dtype)
    assert isinstance(ours, NativeNormMixin) and isinstance(ours, family)
    with torch.inference_mode():
        for size in ([1, WIDTH], [2, 3, WIDTH], [0, WIDTH], [5, 1, 2, WIDTH]):
            for scale in (1e-3, 1.0, 300.0):
                given = rows(dtype, *size, scale=scale)
                found, wanted = ours(given), theirs(given)
                assert found.shape == wanted.shape and found.dtype == wanted.dtype
                torch.testing.assert_close(found, wanted, rtol=2e-6 if dtype is torch.float32 else 2**-7, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_almost_every_bfloat16_value_has_the_very_bits(family: type[nn.Module]) -> None:
    """Only the order of one sum differs; rounding at another place would turn a tenth of the values."""
    ours, theirs = shortened(norm(family, torch.bfloat16)), norm(family, torch.bfloat16)
    given = rows(torch.bfloat16, 200, WIDTH)
    with torch.inference_mode():
        assert (ours(given) != theirs(given)).float().mean() < 1e-3


def test_a_row_has_the_same_bits_alone_and_among_others() -> None:
    ours, given = shortened(norm(OlmoeRMSNorm, torch.float32)), rows(torch.float32, 9, WIDTH)
    with torch.inference_mode():
        assert torch.equal(ours(given)[4:5], ours(given[4:5].clone()))


def test_many_rows_other_types_and_strides_go_the_librarys_way() -> None:
    ours, theirs = shortened(norm(OlmoeRMSNorm, torch.bfloat16)), norm(OlmoeRMSNorm, torch.bfloat16)
    many = rows(torch.bfloat16, MAX_VALUES // WIDTH + 1, WIDTH)
    with torch.inference_mode():
        for given in (many, rows(torch.float32, 2, WIDTH), rows(torch.bfloat16, WIDTH, 3).t()):
            assert torch.equal(ours(given), theirs(given))


def test_nan_and_infinity_stay_what_they_are() -> None:
    ours, theirs = shortened(norm(OlmoeRMSNorm, torch.bfloat16)), norm(OlmoeRMSNorm, torch.bfloat16)
    given = rows(torch.bfloat16, 2, WIDTH)
    given[0, 3], given[1, 5] = float("nan"), float("inf")
    with torch.inference_mode():
        torch.testing.assert_close(ours(given), theirs(given), rtol=0, atol=0, equal_nan=True)


class Doubled(OlmoeRMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(hidden_states)


OTHERS = (nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH, bias=False), Qwen3NextRMSNormGated(WIDTH), nn.Linear(WIDTH, WIDTH))


@pytest.mark.parametrize("module", [*OTHERS, norm(Doubled, torch.float32)])
def test_a_module_that_does_more_or_other_things_keeps_its_own_way(module: nn.Module) -> None:
    assert native_norm(module) is None
    assert type(shortened(module)) is type(module)


def test_float16_keeps_its_own_way() -> None:
    assert native_norm(norm(OlmoeRMSNorm, torch.float16)) is None
