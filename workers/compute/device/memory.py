"""Memory of a device: the parts an engine needs, and the check that they fit before anything is loaded (I5)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ....configs.schema import Config
from ....configs.sizes import format_size, parse_size
from ....errors import BudgetError
from ...checkpoint.survey import ModelSizes, Survey

if TYPE_CHECKING:  # a plan computes the needs without torch
    from .base import Device

LIBRARIES_BYTES = 256 * 2**20
"""Workspaces of the numeric libraries, and fragmentation of the allocator."""
COPIES_OF_ROWS = 6
"""Buffers of a MoE layer with one entry a row: gathered rows, products, products in token order, weighted products
(in float32: two), and an eighth for spare rows."""

UNPACKING_BYTES = 16
"""Bytes a value while an expert is unpacked: float32, the scales spread over it, and the result."""


def device_needs(sizes: ModelSizes, config: Config, slots: int) -> dict[str, int]:
    """Return the bytes that each part of an engine takes on the device, by the part's name."""
    return {
        "expert slots": slots * sizes.stride_bytes,
        "KV caches": parse_size(config.kv_memory, "kv_memory").of(0),
        "the rest of the model": sizes.skeleton_bytes,
        "working memory": working_bytes(sizes, config),
    }


def working_bytes(sizes: ModelSizes, config: Config) -> int:
    """Estimate the temporary memory of a step: the largest prefill in a MoE layer, and the logits."""
    parameters = sizes.parameters.values()
    widest = max(max(shape) for shape in parameters)
    itemsize = 4 if sizes.dtype == "float32" else 2
    rows_bytes = COPIES_OF_ROWS * config.prefill_tokens * sizes.top_k * widest * itemsize
    logits_bytes = 2 * 4 * config.batch_size * sizes.vocabulary
    unpacked_bytes = UNPACKING_BYTES * sum(map(math.prod, parameters)) if sizes.packings else 0
    return rows_bytes + logits_bytes + unpacked_bytes + LIBRARIES_BYTES


def claim_memory(device: Device, config: Config, survey: Survey, slots: int) -> None:
    """Limit this process to its budget on the device. Raises BudgetError, with the numbers, if that is not free."""
    parts = device_needs(survey, config, slots)
    needed, free = sum(parts.values()), device.free_bytes()
    if needed > free:
        listed = ", ".join(f"{name} {format_size(size)}" for name, size in parts.items())
        what = f"needs {format_size(needed)} ({listed}), but only {format_size(free)} is free"
        raise BudgetError(what, device.name, "Lower expert_memory, kv_memory or prefill_tokens")
    device.limit_memory(needed)
