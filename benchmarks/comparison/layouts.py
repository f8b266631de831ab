"""Compare steps from disk by the order of tensors in the files, and with a commit that read tensors one by one."""

from __future__ import annotations

import argparse

from ..contenders.small import ByNameExpertFlow, OlderByName, SmallExpertFlow
from .rows import as_row
from .runs import Cells, Comparison
from .tables import Row

BITS = 4
BEFORE_ORDER = "9d6b08a"
"""The last commit that wrote and read an expert tensor by tensor."""


def add_layout_options(command: argparse.ArgumentParser) -> None:
    """Add the options of this comparison."""
    command.add_argument("--share", default="33%", help="of the experts, in memory")
    command.add_argument("--against", default=BEFORE_ORDER, metavar="COMMIT", help="of this repository")


def run_layouts(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Run all in turn, each first in every third repeat but the first: ours draws the tokens."""
    share = arguments.share
    contenders = [
        SmallExpertFlow(BITS, share),
        ByNameExpertFlow(BITS, share),
        OlderByName(arguments.against, BITS, share),
    ]
    for repeat in range(arguments.repeats):
        turn = repeat % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            comparison.run(contender)


def layout_rows(cells: Cells) -> list[Row]:
    """Compare all with the copy whose experts lie side by side."""
    first = next(iter(cells), ("", 0, 0, ""))[0]
    rows = []
    for (name, limit_bytes, batch, state), cell in cells.items():
        ours = None if name == first else cells.get((first, limit_bytes, batch, state))
        rows.append(as_row(cell, ours, ours))
    return sorted(rows, key=lambda row: row["batch"])
