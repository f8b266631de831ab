"""What has to fit a device's memory, checked before anything is loaded there (I5)."""

from __future__ import annotations

from ....configs.schema import Config
from ....configs.sizes import format_size
from ....errors import BudgetError
from ...checkpoint.survey import Survey
from .base import Device
from .memory_needs import device_needs


def claim_memory(device: Device, config: Config, survey: Survey, slots: int) -> None:
    """Limit this process to its budget on the device. Raises BudgetError, with the numbers, if that is not free."""
    parts = device_needs(survey, config, slots)
    needed, free = sum(parts.values()), device.free_bytes()
    if needed > free:
        listed = ", ".join(f"{name} {format_size(size)}" for name, size in parts.items())
        what = f"needs {format_size(needed)} ({listed}), but only {format_size(free)} is free"
        raise BudgetError(what, device.name, "Lower expert_memory, kv_memory or prefill_tokens")
    device.limit(needed)
