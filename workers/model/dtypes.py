"""What a model's tensors are once loaded, as torch types."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import build_glob_alternation


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def loaded_dtypes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """What each parameter and buffer of a model built in `dtype` will be once loaded: some stay in float32."""
    plan = model._get_dtype_plan(dtype)
    kept = build_glob_alternation(list(plan))[0] if plan else None
    stored = model.state_dict()
    return {
        name: torch.float32 if kept and name in stored and kept.search(name) else tensor.dtype
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
