"""Whether what an engine takes of a device's memory fits it, added up without the device, or torch."""

from __future__ import annotations

import msgspec

from ...configs.schema import Config
from ...workers.checkpoint.survey import ModelSizes
from ...workers.compute.device.memory import device_needs

CONTEXT_BYTES = 512 * 2**20
"""What CUDA takes for one process before it holds anything: an estimate, no GPU was measured."""


class DeviceFit(msgspec.Struct, frozen=True, kw_only=True):
    """All of one device's memory."""

    name: str
    parts: dict[str, int]
    """Bytes by what they are for; working memory and the context are estimates."""
    total_bytes: int
    memory_bytes: int
    """What the device has; 0: not known."""
    fits: bool
    """True if that is not known."""
    smallest_bytes: int
    """In all, with a single slot."""
    largest_slots: int
    """That would fit; 0: not even one, or not known."""
    largest_slots_bytes: int


def device_fit(sizes: ModelSizes, config: Config, slots: int, memory_bytes: int) -> DeviceFit:
    parts = {**device_needs(sizes, config, slots), "CUDA's context": CONTEXT_BYTES}
    total = sum(parts.values())
    others = total - slots * sizes.stride_bytes
    largest = min(max(0, memory_bytes - others) // sizes.stride_bytes, sizes.expert_count)
    return DeviceFit(
        name=config.device,
        parts=parts,
        total_bytes=total,
        memory_bytes=memory_bytes,
        fits=not memory_bytes or total <= memory_bytes,
        smallest_bytes=others + sizes.stride_bytes,
        largest_slots=largest,
        largest_slots_bytes=largest * sizes.stride_bytes,
    )
