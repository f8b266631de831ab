"""`expertflow doctor`: what this machine offers to kernels, and which of them a model runs by."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...errors import UsageError
from ...ipc.messages import Progress
from ...ipc.shared.available import available_bytes
from ...workers.kernels.cache import write_table
from ...workers.kernels.report import KernelReport
from ..command_line.base import DONE, EngineCommand
from ..engine.diagnosis import run_diagnosis
from ..engine.preflight import check_before_start
from ..monitor.kernel_tables import ORIGINS, machine_rows, shape_tables
from ..monitor.progress import ProgressView
from ..monitor.tables import facts_table, result_console


@dataclass(frozen=True, kw_only=True)
class Doctor(EngineCommand):
    """Show what this machine offers to kernels: CPU, library, native kernels, memory, cache.

    With a model also which kernel computes each of its shapes at how many rows. Kernels are timed if they were not
    timed on this machine before, which takes some seconds.
    """

    measure: bool = False
    """Time the kernels of the model again."""
    save: Path | None = None
    """Write the kernel table of the model to this file, for the option kernels."""
    json: bool = False
    """One line of JSON instead of tables."""

    def run(self) -> int:
        self._check()
        report = self._diagnose()
        if self.save is not None and report.table is not None:
            _save(self.save, report)
        if self.json:
            facts = {"cores": len(os.sched_getaffinity(0)), "available_bytes": available_bytes(), "kernels": report}
            sys.stdout.write(msgspec.json.encode(facts).decode() + "\n")
        else:
            _show(report)
        return DONE

    def _check(self) -> None:
        if self.engine.model:
            check_before_start(self.engine)
        for option, given in {"measure": self.measure, "save": self.save is not None}.items():
            if given and (not self.engine.model or self.engine.on_device):
                raise UsageError("is for the kernels of a model on the CPU", option, "Give --model, and no --device")
        if self.measure and self.engine.kernels != "auto":
            raise UsageError("times nothing if kernels are forced", "measure", "Leave out --kernels")

    def _diagnose(self) -> KernelReport:
        with ProgressView() as view, tempfile.TemporaryDirectory(prefix="doctor-expertflow-") as folder:
            view(Progress("doctor", "looking at this machine", 0, 1))
            return run_diagnosis(self.engine, self.measure, Path(folder, "report"), view)


def _save(file: Path, report: KernelReport) -> None:
    if report.table is None:
        return
    try:
        write_table(file, report.table)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", str(file), "Name another file") from error


def _show(report: KernelReport) -> None:
    console = result_console()
    console.print(facts_table(machine_rows(report, len(os.sched_getaffinity(0)), available_bytes())))
    for notice in report.notices:
        console.print(notice, soft_wrap=True)
    if report.table is None:
        return
    console.print(f"\nkernels of the model: {ORIGINS[report.table.origin]} ({report.table.seconds:.2f} s)")
    for key, view in shape_tables(report.table).items():
        console.print(f"\n{key}")
        console.print(view)
