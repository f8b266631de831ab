"""Compare ExpertFlow with llama.cpp on the same GGUF file, in memory and under a limit of half the file."""

from __future__ import annotations

import argparse

from ..contenders.small import GgufExpertFlow, SmallLlamaCpp
from .rows import as_row
from .runs import Cells, Comparison
from .tables import Row

ALL = "100%"
FILE = SmallLlamaCpp("Q4_0")


def run_gguf(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Run both in turn with everything in memory, then under the limit."""
    for _ in range(arguments.repeats):
        comparison.run(GgufExpertFlow(FILE, ALL))
        comparison.run(FILE)
        (file,) = FILE.files(comparison.setting.model)
        for contender in (GgufExpertFlow(FILE), FILE):
            comparison.run(contender, file.stat().st_size // 2)


def gguf_rows(cells: Cells) -> list[Row]:
    """Compare times with ours under the same limit; tokens with ours in memory."""
    rows = []
    for (_, limit_bytes, batch, state), cell in cells.items():
        ours = cells.get((GgufExpertFlow(FILE, "" if limit_bytes else ALL).name, limit_bytes, batch, state))
        resident = cells.get((GgufExpertFlow(FILE, ALL).name, 0, batch, state))
        rows.append(as_row(cell, None if cell is ours else ours, None if cell is resident else resident))
    return sorted(rows, key=lambda row: (-(row["limit_bytes"] or 10**12), row["batch"]))
