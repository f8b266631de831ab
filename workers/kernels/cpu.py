"""Names the CPU of this machine and its instruction sets, and how far ATEN_CPU_CAPABILITY lets kernels use them."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
_AVX512 = ("avx512_bf16", "avx512_bf16_dots", "avx512", "avx512_dots", "avx2")
LIMITS = {"default": (), "avx2": ("avx2",), "avx512": _AVX512}
"""Variants that each value of ATEN_CPU_CAPABILITY, torch's own limit, leaves to the native kernels."""
EVERY_VARIANT = ("amx", "amx_dots", *_AVX512, "neon")


def capability_limit() -> tuple[str, ...]:
    """Return the variants of native kernels that ATEN_CPU_CAPABILITY allows; without it every one."""
    return LIMITS.get(os.environ.get("ATEN_CPU_CAPABILITY", ""), EVERY_VARIANT)


def is_amd() -> bool:
    """Return whether the CPU is AMD's."""
    return _fields().get("vendor_id") == "AuthenticAMD"


def cpu_name() -> str:
    """Return the CPU's own name, such as `Intel(R) Xeon(R) Processor, family 6, model 207`."""
    fields = _fields()
    name = fields.get("model name", platform.processor() or platform.machine())
    labels = {"cpu family": "family", "model": "model"}
    numbers = [f"{label} {fields[key]}" for key, label in labels.items() if key in fields]
    return ", ".join([name, *numbers])


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets that the kernel names for this CPU."""
    fields = _fields()
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


@functools.cache
def _fields() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo."""
    try:
        first = CPU_INFO.read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
