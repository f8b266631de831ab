"""Measure runs and keep each in a file of its own, so that a study goes on where it ended."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from expertflow.errors import ExpertFlowError

from ..machine import cpu_kind
from .cells import Cell, Run
from .measure import Contender, Result, Work, measure, need_bytes_per_s, record
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
    """Name of a run that could not be measured -> why."""

    def run(self, runs: Sequence[Run], minutes: float) -> None:
        """Measure the runs that have no result yet, in order, until `minutes` are over (0: all)."""
        ends = time.monotonic() + 60 * minutes
        for number, run in enumerate(runs, start=1):
            if self._is_done(run):
                continue
            if minutes and time.monotonic() > ends:
                self.log(f"{minutes:g} minutes are over: {number - 1} of {len(runs)} runs are done")
                return
            self.log(f"{number} of {len(runs)}: {run.name}, {len(run.cells)} systems")
            self._measure(run)

    def prepare(self, runs: Sequence[Run]) -> None:
        """Make what these runs need and is not timed: what the oracle reads, and gates. Other work may run beside."""
        for cell in itertools.chain.from_iterable(run.cells for run in runs):
            self._oracle(cell)
            self.work_of(cell)

    def _measure(self, run: Run) -> None:
        first = run.cells[0]
        try:
            rate = first.link * self._need(first)
            results = measure([self._contender(cell) for cell in run.cells], rate)
        except ExpertFlowError as error:
            self.failures[run.name] = error.sentence
            return
        write_results(self._file(run), results)

    def _contender(self, cell: Cell) -> Contender:
        return Contender(cell, find_system(cell.system), self.work_of(cell), self._oracle(cell))

    def _is_done(self, run: Run) -> bool:
        file = self._file(run)
        there = {result["system"] for result in read_results(file)} if file.exists() else set()
        return there.issuperset(cell.system for cell in run.cells)

    def runs(self) -> list[list[Result]]:
        """Return the results of all runs that were measured so far; those of a run were measured side by side."""
        return [read_results(file) for file in sorted(self.out.glob("runs/*.json"))]

    def needs(self) -> dict[str, float]:
        """Return what on demand needs by model and batch, bytes a second, as measured so far."""
        return {
            file.stem: json.loads(file.read_bytes())["bytes_per_s"] for file in sorted(self.out.glob("need/*.json"))
        }

    def _file(self, run: Run) -> Path:
        return self.out / "runs" / f"{run.name}.json"

    def _need(self, cell: Cell) -> float:
        """Return the rate that on demand needs at this batch, bytes a second; measured at the first call."""
        file = self.out / "need" / f"{cell.model}_{cell.batch}.json"
        if not file.exists():
            self.log(f"what on demand needs: {cell.model}, batch {cell.batch}")
            unbound = Cell(ON_DEMAND, cell.model, batch=cell.batch, link=0.0)
            result = measure([self._contender(unbound)], 0.0)[0]
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


def write_results(file: Path, results: Sequence[Result]) -> None:
    """Write the results of a run, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    lines = ",\n".join(json.dumps({"cpu": cpu_kind(), **result}) for result in results)
    partial.write_text(f"[\n{lines}\n]\n")
    partial.rename(file)


def read_results(file: Path) -> list[Result]:
    """Return the results of a run."""
    return json.loads(file.read_bytes())
