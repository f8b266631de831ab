"""What has to fit a device's memory, checked before anything is loaded there (I5)."""

from __future__ import annotations

from ....configs.schema import Config
from ....configs.sizes import format_size, parse_size
from ....errors import BudgetError
from ...checkpoint.survey import ModelSizes, Survey
from .base import Device

LIBRARIES_BYTES = 256 * 2**20
"""Workspaces of the numeric libraries, and what is lost between blocks."""
COPIES_OF_ROWS = 6
"""Rows of a MoE layer: gathered, products, those in the order of tokens, weighted ones (in float32: two), and an eighth
for spare rows."""


def claim_memory(device: Device, config: Config, survey: Survey, slots: int) -> None:
    """Limit this process to its budget on the device. Raises BudgetError, with the numbers, if that is not free."""
    parts = {
        "expert slots": slots * survey.stride_bytes,
        "KV caches": parse_size(config.kv_memory, "kv_memory").of(0),
        "the rest of the model": survey.skeleton_bytes,
        "working memory": working_bytes(survey, survey.vocabulary, config),
    }
    needed, free = sum(parts.values()), device.free_bytes()
    if needed > free:
        listed = ", ".join(f"{name} {format_size(size)}" for name, size in parts.items())
        what = f"needs {format_size(needed)} ({listed}), but only {format_size(free)} is free"
        raise BudgetError(what, device.name, "Lower expert_memory, kv_memory or prefill_tokens")
    device.limit(needed)


def working_bytes(survey: ModelSizes, vocabulary: int, config: Config) -> int:
    """An estimate of what a step needs for a while: the largest prefill in a MoE layer, and the logits."""
    widest = max(max(tensor.shape) for tensor in survey.tensors)
    itemsize = 4 if survey.dtype == "float32" else 2
    rows_bytes = COPIES_OF_ROWS * config.prefill_tokens * survey.top_k * widest * itemsize
    logits_bytes = 2 * 4 * config.batch_size * vocabulary
    return rows_bytes + logits_bytes + LIBRARIES_BYTES
