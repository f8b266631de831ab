"""Check I1b, I1c and I1a on a GPU, and that waits which are left out show.

Tiny models of many families run beside transformers, each sequence alone. Mutants leave a wait out on a device whose
copies or kernels are held up: logits must then be wrong, and right with all waits in place.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from expertflow.ipc.messages import RunStep
from expertflow.runtime.verify.error_ratio import ErrorRatio, compare_errors
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.models.families import save_tiny
from expertflow.tests.system.schedules import Driver, drive
from expertflow.workers.compute.device.base import Device
from expertflow.workers.compute.device.copy_scheduler import CopyScheduler
from expertflow.workers.compute.executor import sample
from expertflow.workers.loader.host_tier import HostTier
from expertflow.workers.model.unit import RowAbilities, Unit
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from transformers import AutoModelForCausalLM

from .under_test import UnderTest

TOLERANCE = 1e-4
BATCH = 6
Logits = dict[int, list[torch.Tensor]]


def check_families(test: UnderTest) -> dict[str, Any]:
    """Check every family; one that fails does not keep the others from being tried."""
    device, rows = test.open(), []
    with tempfile.TemporaryDirectory() as folder:
        for family in test.scale.families:
            try:
                rows.append({"family": family, **_check(Path(folder, family), family, device)})
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this family's result
                rows.append({"family": family, "holds": False, "error": f"{type(error).__name__}: {error}"[:600]})
    return {"holds": all(row["holds"] for row in rows), "rows": rows}


def _check(folder: Path, family: str, device: Device) -> dict[str, Any]:
    save_tiny(family, folder)
    driver, ours = run(folder, "float32", device, "quarter")
    _, resident = run(folder, "float32", device, "all")
    exact = _reference(folder, torch.float32, driver)
    difference, scale = _largest_difference(ours, exact)
    bfloat = _error_ratio(folder, device)
    same_bits = all(torch.equal(mine, other) for mine, other in zip(_all(ours), _all(resident), strict=True))
    tokens_equal = all(
        sequence.token_ids == [int(row.argmax()) for row in exact[number]]
        for number, sequence in driver.sequences.items()
    )
    return {
        "holds": difference <= TOLERANCE * scale and tokens_equal and bfloat.holds and same_bits,
        "float32_difference": difference / scale,
        "tokens_equal": tokens_equal,
        "bfloat16_error_ratio": bfloat.mean,
        "bfloat16_median_ratio": bfloat.median,
        "bits_equal_to_resident": same_bits,
    }


def run(folder: Path, dtype: str, device: Device | None, budget: str, places: int = 0) -> tuple[Driver, Logits]:
    """Run the schedule of the tests; return all logits of each row, on the CPU."""
    survey = survey_checkpoint(str(folder), dtype=dtype)
    slots = survey.expert_count if budget == "all" else survey.expert_count // 4
    seen: Logits = defaultdict(list)

    def choose(step: RunStep, unit: Unit, logits: torch.Tensor) -> list[Any]:
        for number, row in zip(unit.numbers, logits, strict=True):
            seen[number].append(row.float().cpu())
        return sample(step, unit, logits)

    tier, abilities = "disk" if places else "host", RowAbilities.of(survey.rows)
    with LocalRuntime(survey, slots, abilities, choose, tier=tier, device=device, places=places) as runtime:
        driver = Driver(runtime, survey.vocabulary)
        drive(driver, BATCH, seed=1)
    return driver, seen


def _reference(folder: Path, dtype: torch.dtype, driver: Driver, where: Any = "cpu") -> Logits:
    """Run transformers at every position that was generated, each sequence alone and unpadded."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(where).eval()
    found: Logits = {}
    with torch.inference_mode():
        for number, sequence in driver.sequences.items():
            ids = torch.tensor([sequence.prompt_ids + sequence.token_ids], device=where)
            found[number] = list(model(ids).logits[0, len(sequence.prompt_ids) - 1 : -1].float().cpu())
    return found


def _error_ratio(folder: Path, device: Device) -> ErrorRatio:
    """Return our error in bfloat16 against float32, in errors of transformers in bfloat16 on the same GPU."""
    driver, ours = run(folder, "bfloat16", device, "quarter")
    exact = _reference(folder, torch.float32, driver)
    theirs = _reference(folder, torch.bfloat16, driver, device.torch_device)
    return compare_errors(_errors(ours, exact), _errors(theirs, exact))


def _all(logits: Logits) -> list[torch.Tensor]:
    return [row for number in sorted(logits) for row in logits[number]]


def _largest_difference(ours: Logits, exact: Logits) -> tuple[float, float]:
    pairs = list(zip(_all(ours), _all(exact), strict=True))
    return max(float((mine - true).abs().max()) for mine, true in pairs), max(
        float(true.abs().max()) for _, true in pairs
    )


def _errors(logits: Logits, exact: Logits) -> list[np.ndarray]:
    """Return the mean error of each position's logits, [positions] a sequence."""
    pairs = ((torch.stack(logits[number]), torch.stack(exact[number])) for number in sorted(exact))
    return [(mine - true).abs().mean(dim=-1).numpy() for mine, true in pairs]


FAMILY = "qwen3_moe"
TWO_PLACES = 2
MUTANTS: dict[str, tuple[type, str, bool, int]] = {
    "kernels do not wait for the copy": (CopyScheduler, "_await_copy", True, 0),
    "a copy does not wait for the kernels": (CopyScheduler, "_await_kernels", False, 0),
    "a read does not wait for the copy": (HostTier, "_pin", True, TWO_PLACES),
}
"""The wait that is left out, True if copies are late (else kernels), places in the host store (0: the whole model)."""


def check_mutants(test: UnderTest) -> dict[str, Any]:
    """Leave each wait out in turn."""
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
    """Check whether logits differ, or the run fails, as rows do whose logits are no numbers."""
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
