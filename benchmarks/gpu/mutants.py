"""Waits that are left out, on a real device whose copies or kernels are held up: logits must then be wrong, and right
with all waits in place."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from expertflow.tests.families import save_tiny
from expertflow.workers.compute.device.cuda import CudaDevice, CudaStream
from expertflow.workers.compute.device.traffic import SlotTraffic
from expertflow.workers.loader.host_tier import HostTier
from torch import Tensor

from .exact import Logits, run

CYCLES = 3_000_000
"""About two milliseconds: far longer than a copy of a tiny expert, or its kernels."""
FAMILY = "qwen3_moe"
TWO_PLACES = 2


class LateCopies(CudaStream):
    """Every copy begins late."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(CYCLES)
        super().copy(target, source)


class LateKernels(CudaStream):
    """Every kernel of an expert begins late."""

    def launch(self, kernel: Callable[[], None]) -> None:
        torch.cuda._sleep(CYCLES)
        super().launch(kernel)


def late_device(copies: bool) -> CudaDevice:
    device = CudaDevice(0)
    if copies:
        device.copies, device.urgent = LateCopies(torch.cuda.Stream()), LateCopies(torch.cuda.Stream())
    else:
        device.kernels = LateKernels(torch.cuda.current_stream(), current=True)
    return device


MUTANTS: dict[str, tuple[type, str, bool, int]] = {
    "kernels do not wait for the copy": (SlotTraffic, "_await_copy", True, 0),
    "a copy does not wait for the kernels": (SlotTraffic, "_await_kernels", False, 0),
    "a read does not wait for the copy": (HostTier, "_keep", True, TWO_PLACES),
}


def check_mutants() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, FAMILY)
        save_tiny(FAMILY, folder)
        _, right = run(folder, "float32", CudaDevice(0), "all")
        rows = [_try(name, folder, right) for name in MUTANTS]
    return {"holds": all(row["caught"] and row["right_with_all_waits"] for row in rows), "rows": rows}


def _try(name: str, folder: Path, right: Logits) -> dict[str, Any]:
    owner, wait, copies, places = MUTANTS[name]
    whole = _differs(folder, copies, places, right)
    with patch.object(owner, wait, lambda *anything: None):
        mutant = _differs(folder, copies, places, right)
    return {"mutant": name, "caught": mutant, "right_with_all_waits": not whole}


def _differs(folder: Path, copies: bool, places: int, right: Logits) -> bool:
    """Or fails: rows whose logits are no numbers do."""
    try:
        _, seen = run(folder, "float32", late_device(copies), "quarter", places)
    except AssertionError:
        return True
    pairs = zip(right.items(), seen.items(), strict=True)
    return any(
        not torch.allclose(true, mine, atol=1e-3, rtol=1e-3)
        for (_, trues), (_, mines) in pairs
        for true, mine in zip(trues, mines, strict=True)
    )
