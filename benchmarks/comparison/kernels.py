"""Compare the speed of ExpertFlow's products with an older commit's and others', in memory and from disk."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..contenders.base import Case, Contender
from ..contenders.older import OlderExpertFlow
from ..contenders.ours import ExpertFlow
from ..contenders.resident import Resident
from ..contenders.vllm_cpu import VllmCpu
from ..machine import RESTRICTED, restrict_instructions
from .rows import Cell, as_row
from .runs import Cells, Comparison, prefill_cases, random_cases
from .tables import Row

BEFORE_KERNELS = "a3814c8"
"""The commit with which targets K2, K3 and K6 compare."""
BESIDE = ("commit", "transformers", "vllm")
BACKENDS = ("grouped_mm", "eager")
ALL, QUARTER = "100%", "25%"
KV_MEMORY = "2GiB"
"""Room for prefills of 8 x 512 tokens."""


def add_kernel_options(command: argparse.ArgumentParser, prefills: Sequence[str]) -> None:
    """Add the options that both comparisons have."""
    command.add_argument("--isa", choices=RESTRICTED, default="native", help="instructions that libraries may use")
    command.add_argument("--against", default=BEFORE_KERNELS, metavar="COMMIT", help="of this repository")
    command.add_argument("--prefills", nargs="*", default=prefills, metavar="ROWSxTOKENS")
    command.add_argument("--prefill-times", type=int, default=3, help="prefills of a run")


def kernel_cases(model: Path, arguments: argparse.Namespace) -> list[Case]:
    """Make the decode cases and the prefill cases; restrict the instructions of all that is started from here on."""
    restrict_instructions(arguments.isa)
    decoded = random_cases(model, arguments.batches, arguments.steps)
    return [*decoded, *prefill_cases(model, arguments.prefills, arguments.prefill_times)]


def run_kernels(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Alternate ours and the older commit, each first in every other repeat; the others after them.

    vLLM runs once, and only with all instructions: its own products heed no variable.
    """
    for repeat in range(arguments.repeats):
        if "commit" in arguments.beside:
            _run_both(comparison, arguments.against, ALL, repeat)
        else:
            comparison.run(ExpertFlow(ALL, kv_memory=KV_MEMORY))
        for backend in BACKENDS if "transformers" in arguments.beside else ():
            comparison.run(Resident(backend))
        if repeat == 0 and arguments.isa == "native" and "vllm" in arguments.beside:
            comparison.run(VllmCpu())


def run_model_q(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Alternate ours and the older commit."""
    for repeat in range(arguments.repeats):
        _run_both(comparison, arguments.against, arguments.share, repeat)


def _run_both(comparison: Comparison, commit: str, share: str, repeat: int) -> None:
    options = {"kv_memory": KV_MEMORY}
    both: tuple[Contender, ...] = (ExpertFlow(share, **options), OlderExpertFlow(commit, share, **options))
    for contender in both[:: -1 if repeat % 2 else 1]:
        comparison.run(contender)


def kernel_rows(cells: Cells) -> list[Row]:
    """Compare times with ours; tokens of the older commit with ours, those of others with the first backend's."""
    ours = {cell.case: cell for (name, *_), cell in cells.items() if name.startswith(ExpertFlow.name)}
    rows = []
    for (name, *_), cell in cells.items():
        mine = ours[cell.case]
        reference = None if cell is mine else mine if name.startswith("commit") else _resident(cells, cell.case)
        rows.append(as_row(cell, None if cell is mine else mine, reference))
    return sorted(rows, key=lambda row: (row.get("state", ""), row["batch"]))


def _resident(cells: Cells, case: tuple[int, str]) -> Cell | None:
    return cells.get((Resident(BACKENDS[0]).name, 0, *case))
