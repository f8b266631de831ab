"""Compare ExpertFlow with others that run a model larger than their memory, all under the same limits."""

from __future__ import annotations

import argparse

from expertflow.configs.sizes import parse_size

from ..contenders.accelerate_offload import AccelerateDisk
from ..contenders.base import Contender
from ..contenders.llama_cpp import LlamaCpp
from ..contenders.ours import ExpertFlow
from ..contenders.resident import Resident
from ..contenders.small import SmallExpertFlow
from .rows import as_row
from .runs import Cells, Comparison
from .tables import Row

LIMITS = ("1.65GB", "1.1GB", "2.4GB")
"""Half the model, with which ExpertFlow holds a quarter of the experts; a third; with which it holds half of them."""
OFFLOADING: tuple[type[Contender], ...] = (LlamaCpp, AccelerateDisk)
"""Those that run a model larger than their memory, ours aside."""
ALL = "100%"


def add_limit_options(command: argparse.ArgumentParser) -> None:
    """Add the options of this comparison."""
    command.add_argument("--limits", nargs="+", default=LIMITS, help="in the order in which they are run")
    command.add_argument("--bits", type=int, choices=(4, 8), help="ours in so many bits as well: model R")


def run_under_limit(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Run the references without a limit first; then every limit once before any twice."""
    small = [SmallExpertFlow(arguments.bits, share) for share in (ALL, "") if arguments.bits]
    for reference in (ExpertFlow(ALL), *small[:1], Resident()):
        if not any(name == reference.name for name, *_ in comparison.cells):
            comparison.run(reference)
    for _ in range(arguments.repeats):
        for limit_bytes in (parse_size(limit, "limits").of(0) for limit in arguments.limits):
            for contender in (*small[1:], ExpertFlow(), *(cls() for cls in OFFLOADING)):
                comparison.run(contender, limit_bytes)


def under_limit_rows(cells: Cells) -> list[Row]:
    """Compare every repeat with the references, and the others with ours: in few bits, where that was run."""
    rows = []
    small = next((name for name, limit_bytes, *_ in cells if limit_bytes and "bits" in name), "")
    for (name, limit_bytes, batch, state), cell in cells.items():
        drawing = name.startswith(ExpertFlow.name)
        resident = f"{small} {ALL}" if "bits" in name else ExpertFlow(ALL).name if drawing else Resident().name
        ours = cells.get((small or ExpertFlow.name, limit_bytes, batch, state))
        compared = None if name.startswith(small or ExpertFlow.name) else ours
        rows.append(as_row(cell, compared, cells.get((resident, 0, batch, state))))
    return sorted(rows, key=lambda row: (-(row["limit_bytes"] or 10**12), row["batch"]))
