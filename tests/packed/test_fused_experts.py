"""Experts that a whole model multiplies packed give the bits of the native kernels on dequantised ones (I1a)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.tests.models.published import save_block_fp8
from expertflow.tests.registry.trial import exchanged_experts, live
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.kernels import native
from expertflow.workers.kernels.making import TableMaker
from expertflow.workers.kernels.native import NativeKernels
from expertflow.workers.kernels.packed_matrix import PackedMatrix
from expertflow.workers.surveyor.surveyor import PackingChoice, survey_folder

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(bool(native.missing_reason()), reason=f"no kernels: {native.missing_reason()}"),
]


def survey(folder: Path, dtype: str, packed: bool) -> Survey:
    choice = PackingChoice("packed" if packed else "dequantised")
    return survey_folder(folder, dtype, make_table=TableMaker("native", lambda _: None).make, choice=choice)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.inference_mode()
def test_bits_of_native_kernels_on_dequantised_experts(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_block_fp8("qwen3_moe", tmp_path)
    held: list[bool] = []
    experts = NativeKernels.experts

    def watched(self: NativeKernels, activation: str, weights: Any, *others: Any) -> None:
        held.extend(isinstance(matrix, PackedMatrix) for one in weights for matrix in one.values())
        experts(self, activation, weights, *others)

    monkeypatch.setattr(NativeKernels, "experts", watched)
    packed = survey(tmp_path, dtype, packed=True)
    few, resident = live(packed, 3), live(packed, packed.expert_count)
    assert held and all(held)
    held.clear()
    dequantised = live(survey(tmp_path, dtype, packed=False), 3)
    assert held and not any(held)
    assert few.digests == resident.digests == dequantised.digests
    assert live(exchanged_experts(packed), 3).digests != few.digests
