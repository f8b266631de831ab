"""Packed experts give the bits of dequantised ones, and the logits of transformers, whatever is resident (I1a, I1b)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expertflow.tests.models.published import library_model, save_block_fp8, save_mxfp4
from expertflow.tests.registry.trial import TOLERANCE, exchanged_experts, live
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.surveyor.surveyor import survey_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def save(form: str, folder: Path) -> None:
    if form == "mxfp4":
        save_mxfp4(folder)
    else:
        save_block_fp8(form, folder)


def surveys(folder: Path, dtype: str) -> tuple[Survey, Survey]:
    packed = survey_checkpoint(str(folder), dtype=dtype, experts_in="packed")
    return packed, survey_checkpoint(str(folder), dtype=dtype, experts_in="dequantised")


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("qwen3_moe", "bfloat16"),
        ("mxfp4", "float32"),
        *(pytest.param(form, "float32", marks=pytest.mark.slow) for form in ("qwen3_moe", "deepseek_v3")),
        *(pytest.param(form, "bfloat16", marks=pytest.mark.slow) for form in ("mxfp4", "deepseek_v3")),
    ],
)
@torch.inference_mode()
def test_bits_of_the_dequantised_model(form: str, dtype: str, tmp_path: Path):
    save(form, tmp_path)
    packed, dequantised = surveys(tmp_path, dtype)
    assert packed.packings and not dequantised.packings
    assert packed.expert_bytes < dequantised.expert_bytes
    assert packed.parameters == dequantised.parameters
    few, resident = live(packed, 3), live(packed, packed.expert_count)
    assert few.digests == resident.digests == live(dequantised, 3).digests
    if dtype == "float32":
        assert few.error(library_model(tmp_path, dtype)) <= TOLERANCE
        assert live(exchanged_experts(packed), 3).digests != few.digests
