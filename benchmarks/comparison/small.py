"""Compare ExpertFlow with small experts with llama.cpp with small weights, and with what 16 bits cost."""

from __future__ import annotations

import argparse

from expertflow.configs.sizes import parse_size

from ..contenders.base import Contender
from ..contenders.llama_cpp import LlamaCpp
from ..contenders.older import OlderExpertFlow
from ..contenders.ours import ExpertFlow
from ..contenders.small import SmallExpertFlow, SmallLlamaCpp
from .kernels import BEFORE_KERNELS
from .rows import Cell, as_row
from .runs import Cells, Comparison
from .tables import Row

ALL = "100%"
LIMITS = ("1.65GB", "1.1GB")
"""Half of the bfloat16 model, and a third."""


def add_small_options(command: argparse.ArgumentParser) -> None:
    """Add the options of this comparison."""
    command.add_argument("--limits", nargs="*", default=LIMITS, help="memory limits, in the order of the runs")
    command.add_argument("--against", default=BEFORE_KERNELS, metavar="COMMIT", help="of this repository, in 16 bits")


def run_small(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Run without a limit everyone in turn, then under each limit ours in 4 bits, ours and llama.cpp in 16."""
    for _ in range(arguments.repeats):
        for contender in _all_in_memory():
            comparison.run(contender)
        for limit_bytes in (parse_size(limit, "limits").of(0) for limit in arguments.limits):
            for contender in (SmallExpertFlow(4), OlderExpertFlow(arguments.against), LlamaCpp()):
                comparison.run(contender, limit_bytes)


def _all_in_memory() -> list[Contender]:
    llama = [SmallLlamaCpp("Q4_0", only_experts=True), SmallLlamaCpp("Q4_0")]
    return [SmallExpertFlow(4, ALL), *llama, SmallExpertFlow(8, ALL), ExpertFlow(ALL)]


def small_rows(cells: Cells) -> list[Row]:
    """Compare times with ours in 4 bits under the same limit; tokens with those of the same weights."""
    rows = []
    for (_, limit_bytes, batch, state), cell in cells.items():
        share = "" if limit_bytes else ALL
        ours = cells.get((SmallExpertFlow(4, share).name, limit_bytes, batch, state))
        rows.append(as_row(cell, None if cell is ours else ours, _reference(cells, cell)))
    return sorted(rows, key=lambda row: (-(row["limit_bytes"] or 10**12), row["batch"]))


def _reference(cells: Cells, cell: Cell) -> Cell | None:
    """Return the run whose tokens must be equal: the same bits with all experts in memory."""
    own = SmallExpertFlow(4, ALL) if "4 bits" in cell.contender else ExpertFlow(ALL)
    found = cells.get((own.name, 0, *cell.case))
    return None if found is cell else found
