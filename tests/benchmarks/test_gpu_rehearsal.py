"""All of the check but CUDA's own calls, over the fake device (benchmarks/gpu/rehearsal.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from expertflow.benchmarks.contenders.base import CaseResult
from expertflow.benchmarks.gpu.check import ROOT
from expertflow.benchmarks.gpu.copies import measure_ipc, measure_rates
from expertflow.benchmarks.gpu.decoding import measure_library, row_of
from expertflow.benchmarks.gpu.exactness import check_mutants
from expertflow.benchmarks.gpu.parts import MODELS, PARTS, SHARES
from expertflow.benchmarks.gpu.rehearsal import Rehearsal
from expertflow.benchmarks.gpu.results import begin, failure_of, result_of, save_result
from expertflow.tests.models.families import save_tiny

NAMES = [part.name for part in PARTS if not part.name.startswith(MODELS[1])] + [f"{MODELS[1]}-model"]
"""The other model goes the same ways."""


def test_rates_of_all_ways() -> None:
    rates = measure_rates(Rehearsal())
    ways = ("pinned", "registered", "ordered", "pageable")
    assert rates["holds"] and [all(row[way] > 0 for way in ways) for row in rates["rows"]] == [True, True]


@pytest.mark.slow
def test_copies_by_another_process_arrive() -> None:
    """Every byte is compared."""
    found = measure_ipc(Rehearsal())
    assert found["holds"] and all(rate > 0 for rate in found["bytes_per_s"].values())


def test_mutants_are_caught_on_the_fake_device() -> None:
    assert check_mutants(Rehearsal())["holds"]


def test_a_library_is_given_the_tokens_that_were_drawn(tmp_path: Path) -> None:
    begin(tmp_path, rehearsal=True)
    save_tiny("olmoe", tmp_path / "model")
    save_result(tmp_path, "r-model", {"folder": str(tmp_path / "model")})
    found = measure_library(Rehearsal(), tmp_path, "r", "resident")
    scale = Rehearsal.scale
    assert [row["batch"] for row in found["rows"]] == list(scale.batches)
    assert all(row["steps"] == scale.steps - 1 - scale.warm for row in found["rows"])


def test_warming_steps_are_not_counted() -> None:
    row = row_of(CaseResult(first_s=1.0, steps_s=[9.0, 9.0, 0.001, 0.002, 0.006]), 8, warm=2)
    assert (round(row["step_ms"], 6), round(row["mean_step_ms"], 6), row["steps"]) == (2.0, 3.0, 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_part_of_the_check_runs_in_the_rehearsal(tmp_path: Path) -> None:
    """From the command on; accelerate alone may be missing."""
    command = [sys.executable, "-m", "expertflow.benchmarks.gpu.check", "--rehearse", "--out", str(tmp_path)]
    subprocess.run([*command, "--parts", *NAMES], cwd=ROOT, check=False, capture_output=True)
    failed = {name: failure_of(tmp_path, name) for name in NAMES if result_of(tmp_path, name) is None}
    assert set(failed) <= {"r-accelerate"} and all("accelerate" in str(words) for words in failed.values()), failed
    ours = [result_of(tmp_path, f"r-ours-{share}") or {} for share in SHARES]
    loads = np.array([[row["lru_bytes_per_step"] for row in each["rows"]] for each in ours])
    assert (loads[0] == 0).all() and (np.diff(loads, axis=0) >= 0).all()  # fewer slots, more loads
