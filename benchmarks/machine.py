"""Measure what this machine can do (memory copies, direct reads, products), describe it in a line, and restrict what
libraries may use of its processor."""

from __future__ import annotations

import mmap
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from .models import model_r

MB = 1 << 20
COPIED = 256 * MB
READ = 4 * MB
READS = 64
SIZE, EXPERT = 1024, 3 * 512
PRODUCTS, FEW_PRODUCTS = 64, 8
"""Few where there are many rows, which take seconds on a processor without bfloat16 instructions."""
ROWS = 512
ROUNDS = 3


def machine_rates() -> dict[str, tuple[float, str]]:
    """Return the rate (bytes or operations a second) and its unit by what was done; the best of a few rounds."""
    return {
        "memory copy": (_best(_copy), "GB/s"),
        "direct reads of 4 MB": (_best(lambda: _read(max(model_r().glob("*.safetensors")))), "GB/s"),
        "bfloat16 product of one row": (_best(lambda: _multiply(1)[0]), "GB/s"),
        f"of {ROWS} rows": (_best(lambda: _multiply(ROWS)[1]), "GFLOP/s"),
    }


def _best(rate: Callable[[], float]) -> float:
    return max(rate() for _ in range(ROUNDS))


def _copy() -> float:
    source, target = np.ones(COPIED, np.uint8), np.ones(COPIED, np.uint8)
    begun = time.perf_counter()
    np.copyto(target, source)
    return COPIED / (time.perf_counter() - begun)


def _read(file: Path) -> float:
    """Read in order, past the page cache, one read in flight."""
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    memory = mmap.mmap(-1, READ)
    try:
        begun = time.perf_counter()
        done = sum(os.preadv(descriptor, [memory], index * READ) for index in range(READS))
        return done / (time.perf_counter() - begun)
    finally:
        os.close(descriptor)


def _multiply(rows: int) -> tuple[float, float]:
    """Return bytes of weights and operations a second, each weight used in one product with as many rows."""
    import torch

    weights = torch.ones(PRODUCTS if rows == 1 else FEW_PRODUCTS, SIZE, EXPERT, dtype=torch.bfloat16)
    factor = torch.ones(rows, SIZE, dtype=torch.bfloat16)
    begun = time.perf_counter()
    for weight in weights:
        torch.mm(factor, weight)
    spent = time.perf_counter() - begun
    return weights.nbytes / spent, 2 * rows * weights.numel() / spent


RESTRICTED = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
"""By name, variables that make torch, oneDNN and MKL use no newer instructions than the name says."""
CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_fp16": "AVX-512 FP16",
    "amx_bf16": "AMX BF16",
}
"""What matters to products of matrices, by its flag."""


def restrict_instructions(name: str) -> None:
    """Set the variables of `name` for this process and those that it starts; to be called before torch is imported."""
    os.environ.update(RESTRICTED[name])


def cpu_kind(file: Path = CPU_INFO) -> str:
    """Return the processor's name, its instructions, and the variables that keep libraries from some of them."""
    facts: dict[str, str] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = set(facts.get("flags", "").split())
    known = [words for flag, words in INSTRUCTIONS.items() if flag in flags]
    name = facts.get("model name") or platform.processor() or platform.machine()
    model = f"family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts else ""
    return "; ".join(filter(None, (name, model, ", ".join(known), _restrictions())))


def _restrictions() -> str:
    """Return the variables that restrict instructions and are set, as one would set them."""
    names = RESTRICTED["avx2"]
    return " ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)


PACKAGES = ("torch", "transformers", "numpy")


def machine_line() -> str:
    """Measure the rates, which takes some seconds, and return them with processor, cores and versions."""
    rates = ", ".join(f"{name} {rate / 1e9:.1f} {unit}" for name, (rate, unit) in machine_rates().items())
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    cores = len(os.sched_getaffinity(0))
    return f"{cpu_kind()}: {cores} cores, python {platform.python_version()}, {packages}; {rates}."
