"""Sizes and speed of a model whose experts are stored in 16, 8 and 4 bits, side by side."""

from __future__ import annotations

import msgspec

from ...workers.checkpoint.headers import DTYPE_BYTES
from ...workers.checkpoint.survey import ModelSizes
from .forecast import StepForecast

BITS = (16, 8, 4)
GROUP, SCALE_BYTES = 32, 2
"""Weights that share a scale, and its size: what `expertflow quantize` writes if nothing else is asked for."""


class BitsFit(msgspec.Struct, frozen=True, kw_only=True):
    """The model with experts in so many bits, in the same memory."""

    bits: int
    expert_bytes: int
    experts_bytes: int
    slots: int
    """Slots that the memory of the configured ones makes."""
    slots_share: float
    """Share of the experts that they hold."""
    decode: list[StepForecast] = []
    """Expected decode steps of one row and of as many as are configured; computing takes what it takes in 16 bits."""


def fits_by_bits(sizes: ModelSizes, slots_bytes: int) -> list[BitsFit]:
    """Return the sizes for each number of bits; none for a model that is quantised already."""
    plain = sizes.tensors and all(tensor.dtype in DTYPE_BYTES for tensor in sizes.tensors)
    if not plain or _is_small(sizes):
        return []
    return [_fit(sizes, bits, slots_bytes) for bits in BITS]


def sizes_in(sizes: ModelSizes, fit: BitsFit) -> ModelSizes:
    """Return the sizes by which steps are forecast: the same products, other bytes to read."""
    return msgspec.structs.replace(sizes, stored_expert_bytes=fit.expert_bytes)


def _is_small(sizes: ModelSizes) -> bool:
    return 0 < sizes.stored_expert_bytes < sizes.expert_bytes


def _fit(sizes: ModelSizes, bits: int, slots_bytes: int) -> BitsFit:
    values = sum(tensor.count_bytes // DTYPE_BYTES[tensor.dtype] for tensor in sizes.tensors) / sizes.kinds
    scales = SCALE_BYTES / GROUP if bits < BITS[0] else 0
    expert_bytes = round(values * (bits / 8 + scales))
    slots = min(slots_bytes // expert_bytes, sizes.expert_count)
    return BitsFit(
        bits=bits,
        expert_bytes=expert_bytes,
        experts_bytes=expert_bytes * sizes.expert_count,
        slots=slots,
        slots_share=slots / sizes.expert_count,
    )
