"""What an engine takes of a device's memory, part by part: what compute claims, and what a plan adds up."""

from __future__ import annotations

from ....configs.schema import Config
from ....configs.sizes import parse_size
from ...checkpoint.survey import ModelSizes

LIBRARIES_BYTES = 256 * 2**20
"""Workspaces of the numeric libraries, and what is lost between blocks."""
COPIES_OF_ROWS = 6
"""Rows of a MoE layer: gathered, products, those in the order of tokens, weighted ones (in float32: two), and an eighth
for spare rows."""


def device_needs(sizes: ModelSizes, config: Config, slots: int) -> dict[str, int]:
    """Bytes by what they are for."""
    return {
        "expert slots": slots * sizes.stride_bytes,
        "KV caches": parse_size(config.kv_memory, "kv_memory").of(0),
        "the rest of the model": sizes.skeleton_bytes,
        "working memory": working_bytes(sizes, config),
    }


def working_bytes(sizes: ModelSizes, config: Config) -> int:
    """An estimate of what a step needs for a while: the largest prefill in a MoE layer, and the logits."""
    widest = max(max(tensor.shape) for tensor in sizes.tensors)
    itemsize = 4 if sizes.dtype == "float32" else 2
    rows_bytes = COPIES_OF_ROWS * config.prefill_tokens * sizes.top_k * widest * itemsize
    logits_bytes = 2 * 4 * config.batch_size * sizes.vocabulary
    return rows_bytes + logits_bytes + LIBRARIES_BYTES
