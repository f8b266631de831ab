"""Rows of a comparison: figures, equality of tokens, tables."""

from __future__ import annotations

import json
from pathlib import Path

from expertflow.benchmarks.comparison.rows import Cell, as_row
from expertflow.benchmarks.comparison.tables import markdown, read_cells, write
from expertflow.benchmarks.contenders.base import CaseResult, TaskResult
from expertflow.benchmarks.contenders.running import Run


def cell(name: str, steps_s: list[float], **answered: list[list[int]]) -> Cell:
    made = Cell(name, 10**9, 2)
    result = CaseResult(first_s=0.5, steps_s=steps_s, facts={"hit_ratio": 0.5}, **answered)
    made.add(Run(TaskResult(ready_s=1.0, cases=[result]), pss_peak_bytes=3_000_000), 0)
    return made


def test_figures_of_a_cell() -> None:
    ours = cell("ExpertFlow", [0.1, 0.1, 0.2], tokens=[[1, 2], [3, 4]])
    row = as_row(ours, None, cell("resident", [0.1], tokens=[[1, 2], [3, 5]]))
    assert (row["tokens_per_s"], row["identical"], row["hit_ratio"]) == (15.0, 0.75, 0.5)


def test_a_contender_is_paired_with_ours_and_judged_by_its_choices() -> None:
    ours, theirs = cell("ExpertFlow", [0.1, 0.3]), cell("other", [0.4, 0.4, 9.0], choices=[[1, 2], [3, 3]])
    row = as_row(theirs, ours, cell("resident", [0.1], choices=[[1, 2], [3, 4], [5, 6]]))
    assert row["speedup"]["estimate"] == 2.0
    assert row["identical"] == 0.75


def test_who_failed_is_a_line_with_the_reason(tmp_path: Path) -> None:
    failed = Cell("other", 10**9, 2)
    failed.add(Run(failure="killed by the kernel: out of memory"), 0)
    ours = cell("ExpertFlow", [0.1])
    rows = [as_row(failed, None, None), as_row(ours, None, None)]
    assert markdown(rows).splitlines()[2].endswith("| – | killed by the kernel: out of memory |")
    write(rows, [failed, ours], tmp_path / "x.json", "title", ["note"])
    assert json.loads((tmp_path / "x.json").read_text())["rows"] == rows
    assert read_cells(tmp_path / "x.json") == [failed, ours]
    assert (tmp_path / "x.png").exists()
    assert "note" in (tmp_path / "x.md").read_text()
