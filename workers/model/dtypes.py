"""Torch types of a model's tensors once it is loaded."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import build_glob_alternation


def dtype_name(dtype: torch.dtype) -> str:
    """Return the bare name of a type: `bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def loaded_dtypes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the type of each parameter and buffer of a model in `dtype` once it is loaded: some stay in float32."""
    plan = model._get_dtype_plan(dtype)
    kept = build_glob_alternation(list(plan))[0] if plan else None
    stored = model.state_dict()
    return {
        name: torch.float32 if kept and name in stored and kept.search(name) else tensor.dtype
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
