"""`expertflow doctor`: what keeps this machine from running models, or slows them, and what to do about it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import msgspec

from ...errors import UsageError
from ...ipc.messages import Progress
from ...workers.kernels.cache import write_table
from ...workers.kernels.table import KernelTable
from ..command_line.base import DONE, FAILED, EngineCommand
from ..doctor.checks import worst
from ..doctor.examine import Examination, examine
from ..doctor.view import findings_view, summary
from ..engine.preflight import check_named_files
from ..monitor.kernel_tables import ORIGINS, machine_rows, shape_tables
from ..monitor.progress import ProgressView
from ..monitor.tables import facts_table, result_console
from ..service.whole_files import require_file


@dataclass(frozen=True, kw_only=True)
class Doctor(EngineCommand):
    """Examine this machine: memory, shared and locked memory, disk, cores, instructions, CUDA, versions, kernels.

    Each gets a verdict (ok, warning, unfit) and, unless it is ok, what to do. With a model its needs are the measure:
    the disk is read for a second, and kernels are timed if they were not timed on this machine before, which takes
    some seconds. Exit code 0: nothing is unfit, 1: something is.
    """

    chooses_memory: ClassVar = True
    measure: bool = False
    """Time the kernels of the model again."""
    save: Path | None = None
    """Write the kernel table of the model to this file, for the option kernels."""
    json: bool = False
    """One line of JSON instead of tables."""

    def run(self) -> int:
        self._check()
        if self.save is not None:
            require_file(self.save)
        with ProgressView() as view:
            view(Progress("doctor", "looking at this machine", 0, 1))
            examination = examine(self.engine, self.measure, view)
        table = examination.diagnosis and examination.diagnosis.kernels.table
        if self.save is not None and table is not None:
            _save(self.save, table)
        if self.json:
            sys.stdout.write(msgspec.json.encode(_as_json(examination)).decode() + "\n")
        else:
            _show(examination)
        return FAILED if worst(examination.findings) == "unfit" else DONE

    def _check(self) -> None:
        if self.engine.model:
            check_named_files(self.engine)
        for option, given in {"measure": self.measure, "save": self.save is not None}.items():
            if given and (not self.engine.model or self.engine.on_device):
                raise UsageError("is for the kernels of a model on the CPU", option, "Give --model, and no --device")
        if self.measure and self.engine.kernels != "auto":
            raise UsageError("times nothing if kernels are forced", "measure", "Leave out --kernels")


def _save(file: Path, table: KernelTable) -> None:
    try:
        write_table(file, table)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", str(file), "Name another file") from error


def _as_json(examination: Examination) -> dict[str, object]:
    return {
        "verdict": worst(examination.findings),
        "findings": examination.findings,
        "facts": examination.facts,
        "disk": examination.disk,
        "cores": examination.facts.cores,
        "available_bytes": examination.facts.available_bytes,
        "kernels": examination.diagnosis and examination.diagnosis.kernels,
    }


def _show(examination: Examination) -> None:
    console = result_console()
    console.print(findings_view(examination.findings))
    console.print(summary(examination.findings), soft_wrap=True)
    if examination.diagnosis is None:
        return
    report = examination.diagnosis.kernels
    console.print()
    console.print(facts_table(machine_rows(report, len(os.sched_getaffinity(0)), examination.facts.available_bytes)))
    for notice in report.notices:
        console.print(notice, soft_wrap=True)
    if report.table is None:
        return
    console.print(f"\nkernels of the model: {ORIGINS[report.table.origin]} ({report.table.seconds:.2f} s)")
    for key, view in shape_tables(report.table).items():
        console.print(f"\n{key}")
        console.print(view)
