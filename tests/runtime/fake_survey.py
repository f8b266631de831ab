"""A survey of no real checkpoint."""

from __future__ import annotations

import numpy as np
from expertflow.workers.checkpoint.survey import RowFacts, Survey


def fake_survey(layers: int = 4, experts: int = 8, stride_bytes: int = 4096, skeleton_bytes: int = 1000) -> Survey:
    return Survey(
        folder="nowhere",
        model_type="fake",
        architecture="Fake",
        dtype="float32",
        vocabulary=10,
        context=100,
        eos_ids=[],
        layers=layers,
        experts=experts,
        top_k=2,
        module_names=[f"layers.{layer}" for layer in range(layers)],
        skeleton_bytes=skeleton_bytes,
        checkpoint_bytes=layers * experts * stride_bytes,
        rows=RowFacts(kv_bytes_per_position=16),
        files=[],
        tensors=[],
        pieces=[],
        places=np.zeros(0, np.int64).tobytes(),
        stride_bytes=stride_bytes,
        block_bytes=1,
    )
