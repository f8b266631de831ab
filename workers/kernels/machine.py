"""Facts of this machine and this process that the speed of a kernel depends on: CPU, torch, threads, environment."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import torch

CAPS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
"""Environment variables that keep the library from instructions that the CPU has."""
FLAGS_THAT_MATTER = (
    "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
    "asimd", "asimdhp", "bf16", "i8mm", "sve",
)  # fmt: skip
"""Flags of a CPU, as Linux names them, that decide how fast products in float32 and in 16 bits are."""
_MODEL_FIELDS, _FLAG_FIELDS = ("model name", "CPU part", "Processor"), ("flags", "Features")


def machine_facts(native: str) -> dict[str, str]:
    """Return what a kernel table depends on besides the shapes; equal facts, same table.

    `native`: variant and version of the native kernels, empty without them.
    """
    flags = cpu_flags()
    return {
        "cpu": cpu_model(),
        "flags": hashlib.sha256(" ".join(sorted(flags)).encode()).hexdigest()[:16],
        "torch": str(torch.__version__),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "native": native,
        **{name: os.environ.get(name, "") for name in CAPS},
    }


def cpu_model() -> str:
    """Return the name of the CPU, or of its architecture where Linux does not say more."""
    return _first_of(_MODEL_FIELDS) or platform.machine()


def cpu_flags() -> list[str]:
    """Return the flags of the first CPU."""
    return _first_of(_FLAG_FIELDS).split()


def _first_of(fields: tuple[str, ...]) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    return next((values[name] for name in fields if name in values), "")
