"""What a model is computed on, as people write it: `cpu`, `cuda:1`, or several GPUs as `cuda:0,cuda:1`."""

from __future__ import annotations

import re

from ..errors import UsageError

_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?|fake:\d{1,9}")
"""`fake` is a device for tests: streams that run late, on the CPU."""


def read_devices(text: str) -> list[str]:
    """The devices named, one an engine. Raises UsageError for what is none, or cannot stand beside the others."""
    devices = [each.strip() for each in text.split(",")]
    for device in devices:
        if _DEVICE.fullmatch(device) is None:
            remedy = "Choose cpu, cuda, cuda:N, or several GPUs as cuda:0,cuda:1"
            raise UsageError(f"no device '{device}'", "device", remedy)
    if len(devices) > 1:
        _check_beside_each_other(devices)
    return devices


def _check_beside_each_other(devices: list[str]) -> None:
    if "cpu" in devices:
        remedy = "Name GPUs alone, each of which gets an engine, or cpu alone"
        raise UsageError("cpu is not one of several devices", "device", remedy)
    parts = [device.partition(":") for device in devices]
    numbers = [(kind, int(number or 0)) for kind, _, number in parts]
    for position, device in enumerate(devices):
        if numbers[position] in numbers[:position]:
            remedy = "Name each GPU once; two engines on one are two launches with half of its memory each"
            raise UsageError(f"{device} is named twice", "device", remedy)
