"""`verify` on batch-invariant rows: each is run alone, and a difference is found and named (I1d)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from expertflow.ipc.messages import DropUnit, PredictStep, RunStep, Split, Stepped, StepRouting
from expertflow.runtime.verify.alone import first_difference, has_invariant_rows, recorded_rows
from expertflow.runtime.verify.checks import Verification
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.runtime.verify.replay import replay
from expertflow.runtime.verify.report import ALONE
from expertflow.tests.lockstep.lives import surveyed
from expertflow.tests.models.families import save_tiny
from expertflow.tests.system.schedules import Driver, drive
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.executor import Executor, sample
from expertflow.workers.compute.recording import Recording
from expertflow.workers.model.encoder_decoder import new_unit
from expertflow.workers.model.unit import RowAbilities


class RecordedRuntime:
    """A runtime whose steps are recorded as those of compute are."""

    def __init__(self, survey: Survey, folder: Path) -> None:
        self._recording = Recording.open(str(folder), 0)
        self._runtime = LocalRuntime(survey, survey.expert_count // 4, choose=self._recording.watch(sample))

    def run(self, step: RunStep, coming: PredictStep | None = None) -> tuple[Stepped, StepRouting | None]:
        stepped, routing = self._runtime.run(step)
        self._recording.step(step, stepped, routing)
        return stepped, routing

    def order(self, order: Split | DropUnit) -> None:
        self._runtime.order(order)
        self._recording.order(order)

    def close(self) -> None:
        self._runtime.__exit__(None, None, None)
        for file in (self._recording._steps, self._recording._routes):
            assert file is not None
            file.close()


def record(survey: Survey, folder: Path, batch_invariant: bool = True) -> Driver:
    runtime: Any = RecordedRuntime(survey, folder)
    driver = Driver(runtime, survey.vocabulary, batch_invariant=batch_invariant)
    drive(driver, 5, seed=1)
    runtime.close()
    return driver


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("olmoe")
    save_tiny("olmoe", folder)
    return folder


def test_rows_are_run_alone_and_counted(folder: Path, tmp_path: Path) -> None:
    driver = record(surveyed(folder, "float32"), tmp_path)
    logits = sum(len(sequence.token_ids) for sequence in driver.sequences.values())
    check = Verification(tmp_path, str(folder)).alone()
    assert check is not None and (check.claim, check.holds) == (ALONE, True)
    assert check.detail == f"5 rows, {logits} logits, up to 5 together"


def test_the_first_other_bit_is_named(folder: Path, tmp_path: Path) -> None:
    survey, abilities = surveyed(folder, "float32"), RowAbilities()
    record(survey, tmp_path)
    rows = sorted(recorded_rows(tmp_path, replay(tmp_path, survey, abilities)), key=lambda row: row.request.number)
    rows[2].digests[1] = bytes(8)
    assert first_difference(tmp_path, rows, survey, abilities) == (2, 1)


def test_rows_that_shared_a_tensor_are_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording of an engine that broke its promise."""
    survey = surveyed(folder, "float32")
    with monkeypatch.context() as patched:
        patched.setattr(Executor, "_new_unit", lambda self, step: new_unit(self._model.config))
        record(survey, tmp_path)
    check = Verification(tmp_path, str(folder)).alone()
    assert check is not None and not check.holds and "first difference: row" in check.detail


def test_other_recordings_are_not_run_alone(folder: Path, tmp_path: Path) -> None:
    record(surveyed(folder, "float32"), tmp_path, batch_invariant=False)
    assert not has_invariant_rows(tmp_path) and Verification(tmp_path, str(folder)).alone() is None
