"""What the scripts that compare have in common: options, and a page in any case."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from ..machine import machine_line
from .compare import Cells, Comparison, Setting
from .interrupted import ended_by_signal
from .tables import Row, markdown
from .writing import read_cells, write

TIMEOUT_S = 240.0


def parser_of(
    doc: str | None, batches: Sequence[int], steps: int, repeats: int, patience_s: float, out: str
) -> argparse.ArgumentParser:
    """With the options that all have, and these for defaults."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=batches)
    parser.add_argument("--steps", type=int, default=steps, help="decoded tokens of a case")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--patience", type=float, default=patience_s, help="seconds after which a case of a run ends")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds after which a run is given up")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no run begins")
    parser.add_argument("--resume", action="store_true", help="add repeats to those that the file --out has")
    parser.add_argument("--out", type=Path, default=Path(out))
    return parser


def carry_out(
    setting: Setting,
    arguments: argparse.Namespace,
    work: Callable[[Comparison], None],
    rows_of: Callable[[Cells], list[Row]],
    title: str,
    notes: Sequence[str],
) -> None:
    """Compares; writes what there is, also when it is asked to end."""
    console, machine = Console(stderr=True), machine_line()
    comparison = Comparison(setting, console.print)
    if arguments.resume:
        comparison.resume(read_cells(arguments.out))
    try:
        with ended_by_signal():
            work(comparison)
    finally:
        rows, cells = rows_of(comparison.cells), list(comparison.cells.values())
        how = f"`{_command()}` on {machine}"
        write(rows, cells, arguments.out, title, [*notes, how])
    console.print(markdown(rows), soft_wrap=True)


def _command() -> str:
    """As it was given, without this machine's folders."""
    module = f"{__package__.rpartition('.')[0]}.{Path(sys.argv[0]).stem}" if __package__ else sys.argv[0]
    return " ".join(["python -m", module, *(Path(each).name for each in sys.argv[1:])])
