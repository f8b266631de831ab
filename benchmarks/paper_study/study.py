"""Run cells and keep each result in a file of its own, so that a run goes on where the last one ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from expertflow.errors import ExpertFlowError

from ..machine import cpu_kind
from .cells import Cell
from .measure import Result, Work, measure, need_bytes_per_s, record
from .systems import ON_DEMAND, find_system


@dataclass
class Study:
    """Folder of results, and what a cell is measured with. `recordings` keeps what the oracle reads."""

    out: Path
    recordings: Path
    work_of: Callable[[Cell], Work]
    """Returns what a cell does; makes the model and trains what its system needs at the first call."""
    log: Callable[[str], None]
    failures: dict[str, str] = field(default_factory=dict)
    """Name of a cell that could not be measured -> why."""

    def run(self, cells: Sequence[Cell], minutes: float) -> None:
        """Measure the cells that have no result yet, in order, until `minutes` are over (0: all)."""
        ends = time.monotonic() + 60 * minutes
        for number, cell in enumerate(cells, start=1):
            if self._file(cell).exists():
                continue
            if minutes and time.monotonic() > ends:
                self.log(f"{minutes:g} minutes are over: {number - 1} of {len(cells)} cells are done")
                return
            self.log(f"{number} of {len(cells)}: {cell.name}")
            self._run_cell(cell)

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Make what these cells need and is not timed: what the oracle reads, and gates. Other work may run beside."""
        for cell in cells:
            self._oracle(cell)
        for cell in cells:
            self.work_of(cell)

    def _run_cell(self, cell: Cell) -> None:
        try:
            rate = cell.link * self._need(cell)
            result = measure(self.work_of(cell), cell, find_system(cell.system), rate, self._oracle(cell))
        except ExpertFlowError as error:
            self.failures[cell.name] = error.sentence
            return
        write_result(self._file(cell), result)

    def results(self) -> list[Result]:
        """Return the results of all cells that were measured so far."""
        return [json.loads(file.read_bytes()) for file in sorted(self.out.glob("cells/*.json"))]

    def needs(self) -> dict[str, float]:
        """Return what on demand needs by model and batch, bytes a second, as measured so far."""
        return {
            file.stem: json.loads(file.read_bytes())["bytes_per_s"] for file in sorted(self.out.glob("need/*.json"))
        }

    def _file(self, cell: Cell) -> Path:
        return self.out / "cells" / f"{cell.name}.json"

    def _need(self, cell: Cell) -> float:
        """Return the rate that on demand needs at this batch, bytes a second; measured at the first call."""
        file = self.out / "need" / f"{cell.model}_{cell.batch}.json"
        if not file.exists():
            self.log(f"what on demand needs: {cell.model}, batch {cell.batch}")
            unbound = Cell(ON_DEMAND, cell.model, batch=cell.batch, link=0.0)
            result = measure(self.work_of(unbound), unbound, find_system(ON_DEMAND), 0.0)
            file.parent.mkdir(parents=True, exist_ok=True)
            needed = need_bytes_per_s(result)
            file.write_text(json.dumps({"bytes_per_s": needed, "compute_s": result["compute_s"], "cpu": cpu_kind()}))
        return float(json.loads(file.read_bytes())["bytes_per_s"])

    def _oracle(self, cell: Cell) -> str:
        """Return the recording that the oracle reads, made at the first call; empty for another system."""
        if find_system(cell.system).options.get("predictor") != "oracle":
            return ""
        folder = self.recordings / f"{cell.model}_{cell.batch}"
        if not (folder / "done").exists():
            self.log(f"recording for the oracle: {cell.model}, batch {cell.batch}")
            recorded = cell._replace(system=ON_DEMAND)
            record(self.work_of(recorded), recorded, find_system(ON_DEMAND), folder)
            (folder / "done").touch()
        return str(folder)


def write_result(file: Path, result: Result) -> None:
    """Write the file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"cpu": cpu_kind(), **result}) + "\n")
    partial.rename(file)
