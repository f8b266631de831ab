"""Facts of this machine and this process that the speed of a kernel depends on: CPU, torch, threads, environment."""

from __future__ import annotations

import hashlib
import os

import torch

from .cpu import cpu_flags, cpu_name

CAPS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
"""Environment variables that keep the library from instructions that the CPU has."""
FLAGS_THAT_MATTER = (
    "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
    "asimd", "asimdhp", "bf16", "i8mm", "sve",
)  # fmt: skip
"""Flags of a CPU, as Linux names them, that decide how fast products in float32 and in 16 bits are."""


def machine_facts(native: str) -> dict[str, str]:
    """Return what a kernel table depends on besides the shapes; equal facts, same table.

    `native`: variant and version of the native kernels, empty without them.
    """
    return {
        "cpu": cpu_name(),
        "flags": hashlib.sha256(" ".join(sorted(cpu_flags())).encode()).hexdigest()[:16],
        "torch": str(torch.__version__),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "native": native,
        **{name: os.environ.get(name, "") for name in CAPS},
    }
