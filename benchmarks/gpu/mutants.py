"""Waits that are left out, on a device whose copies or kernels are held up: logits must then be wrong, and right with
all waits in place."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from expertflow.tests.families import save_tiny
from expertflow.workers.compute.device.copy_scheduler import CopyScheduler
from expertflow.workers.loader.host_tier import HostTier

from .exact import Logits, run
from .under_test import UnderTest

FAMILY = "qwen3_moe"
TWO_PLACES = 2
MUTANTS: dict[str, tuple[type, str, bool, int]] = {
    "kernels do not wait for the copy": (CopyScheduler, "_await_copy", True, 0),
    "a copy does not wait for the kernels": (CopyScheduler, "_await_kernels", False, 0),
    "a read does not wait for the copy": (HostTier, "_keep", True, TWO_PLACES),
}
"""What is left out, whether copies or else kernels are late, and places in the host store (0: the whole model)."""


def check_mutants(test: UnderTest) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, FAMILY)
        save_tiny(FAMILY, folder)
        _, right = run(folder, "float32", test.open(), "all")
        rows = [_try(test, name, folder, right) for name in MUTANTS]
    return {"holds": all(row["caught"] and row["right_with_all_waits"] for row in rows), "rows": rows}


def _try(test: UnderTest, name: str, folder: Path, right: Logits) -> dict[str, Any]:
    owner, wait, copies, places = MUTANTS[name]
    whole = _differs(test, folder, copies, places, right)
    with patch.object(owner, wait, lambda *anything: None):
        mutant = _differs(test, folder, copies, places, right)
    return {"mutant": name, "caught": mutant, "right_with_all_waits": not whole}


def _differs(test: UnderTest, folder: Path, copies: bool, places: int, right: Logits) -> bool:
    """Or fails: rows whose logits are no numbers do."""
    try:
        _, seen = run(folder, "float32", test.late(copies), "quarter", places)
    except AssertionError:
        return True
    pairs = zip(right.items(), seen.items(), strict=True)
    return any(
        not torch.allclose(true, mine, atol=1e-3, rtol=1e-3)
        for (_, trues), (_, mines) in pairs
        for true, mine in zip(trues, mines, strict=True)
    )
