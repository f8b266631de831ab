"""Checks of single option values: numbers, devices, texts.

An option states the range of its number where it is declared: `share: Annotated[float, Meta(ge=0, le=1)] = 0.2`.
"""

from __future__ import annotations

import math
import re
from dataclasses import fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from msgspec import Meta

from ..errors import UsageError

Seed = Annotated[int, Meta(ge=0, lt=2**63)]
KERNELS = ("native", "left_factor", "linear", "float32_tiles")
"""Names of the kernels (workers/kernels/table.py)."""
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?|fake:\d{1,9}")
"""`fake` is a device for tests: streams that run late, on the CPU."""


def check_numbers(options: Any) -> None:
    """Check all fields of a dataclass that state a range. Raises UsageError that names the first one out of range."""
    for name, allowed in stated_ranges(type(options)).items():
        check_number(getattr(options, name), name, allowed)


def check_number(value: float, name: str, allowed: Meta) -> None:
    """Check one number. Raises UsageError with the option, the value and the range."""
    finite = isinstance(value, int) or math.isfinite(value)
    if not (finite and _inside(value, allowed)):
        words = range_words(allowed)
        raise UsageError(f"must be {words}, not {value}", name, f"Give a number {words}")


def stated_ranges(cls: type[Any]) -> dict[str, Meta]:
    """Return name -> range for the fields of a dataclass whose type states a range."""
    hints = get_type_hints(cls, include_extras=True)
    annotated = {field.name: hints[field.name] for field in fields(cls) if get_origin(hints[field.name]) is Annotated}
    return {name: extra for name, hint in annotated.items() for extra in get_args(hint)[1:] if isinstance(extra, Meta)}


def range_words(allowed: Meta) -> str:
    """Return a range in words: `from 0 to 1`, `from 0 to below 1`, `above 0`."""
    if allowed.ge is not None and allowed.le is not None:
        return f"from {allowed.ge:,} to {allowed.le:,}"
    if allowed.ge is not None and allowed.lt is not None:
        return f"from {allowed.ge:,} to below {allowed.lt:,}"
    if allowed.multiple_of is not None:
        return f"a multiple of {allowed.multiple_of:,}, at least {allowed.ge:,}"
    bounds = {"at least": allowed.ge, "above": allowed.gt, "at most": allowed.le, "below": allowed.lt}
    return " and ".join(f"{word} {bound:,}" for word, bound in bounds.items() if bound is not None)


def _inside(value: float, allowed: Meta) -> bool:
    return (
        (allowed.ge is None or value >= allowed.ge)
        and (allowed.gt is None or value > allowed.gt)
        and (allowed.le is None or value <= allowed.le)
        and (allowed.lt is None or value < allowed.lt)
        and (allowed.multiple_of is None or value % allowed.multiple_of == 0)
    )


def read_devices(text: str) -> list[str]:
    """Return the named devices, one an engine. Raises UsageError for an unknown device or an invalid combination."""
    devices = [device.strip() for device in text.split(",")]
    for device in devices:
        if _DEVICE.fullmatch(device) is None:
            remedy = "Choose cpu, cuda, cuda:N, or several GPUs as cuda:0,cuda:1"
            raise UsageError(f"no device '{device}'", "device", remedy)
    if len(devices) > 1:
        _check_combination(devices)
    return devices


def _check_combination(devices: list[str]) -> None:
    if "cpu" in devices:
        remedy = "Name GPUs only (each gets an engine), or cpu only"
        raise UsageError("cpu cannot be combined with other devices", "device", remedy)
    parts = [device.partition(":") for device in devices]
    numbers = [(name, int(number or 0)) for name, _, number in parts]
    for position, device in enumerate(devices):
        if numbers[position] in numbers[:position]:
            remedy = "Name each GPU once; for two engines on one GPU launch twice, each with half of its memory"
            raise UsageError(f"{device} is named twice", "device", remedy)


def check_kernels(kernels: str, on_device: bool) -> None:
    """Check the choice of kernels: auto, the name of one, or a path. Raises UsageError."""
    is_path = "/" in kernels or kernels.endswith(".json")
    if kernels not in ("auto", *KERNELS) and not is_path:
        remedy = f"Choose auto, {', '.join(KERNELS)}, or the path of a table (.json)"
        raise UsageError(f"no kernels '{kernels}'", "kernels", remedy)
    if on_device and kernels != "auto":
        raise UsageError("are for the CPU; a device has its own", "kernels", "Leave it out, or use device = cpu")


def is_text(value: str) -> bool:
    """Return whether UTF-8 can encode `value`; it cannot encode the lone surrogates of undecodable arguments."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
