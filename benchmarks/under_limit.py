"""ExpertFlow, accelerate and llama.cpp on model R under memory limits that the kernel enforces (target S4).

python -m expertflow.benchmarks.under_limit --limits 1.65GB 1.1GB --batches 1 8 --out docs/results/under-limit.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from expertflow.configs.sizes import parse_size
from rich.console import Console

from .comparison.compare import Setting, compare
from .comparison.rows import Cell, as_row
from .contender.accelerate_disk import AccelerateDisk
from .contender.llama_cpp import LlamaCpp
from .contender.ours import ExpertFlow
from .enforced.memory_group import NoLimit
from .models import MODEL_R, model_r


def main() -> None:
    arguments = _arguments()
    console = Console(stderr=True)
    setting = Setting(
        model_r(), MODEL_R["vocab_size"] or 0, arguments.batches, arguments.steps, arguments.repeats,
        arguments.patience, arguments.timeout,
    )  # fmt: skip
    rows = []
    contenders = [ExpertFlow(), LlamaCpp(), AccelerateDisk()]
    for limit in arguments.limits:
        try:
            cells = compare(setting, contenders, parse_size(limit, "limits").of(0), console.print)
        except NoLimit as reason:
            console.print(f"No memory limit can be enforced here: {reason}")
            rows.append({"limit": limit, "failure": f"no memory limit can be enforced here: {reason}"})
            break
        rows += [as_row(cell, _ours(cells, cell), None) for cell in cells]
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    console.print_json(json.dumps(rows))


def _ours(cells: list[Cell], other: Cell) -> Cell | None:
    if other.contender == ExpertFlow.name:
        return None
    return next(cell for cell in cells if cell.contender == ExpertFlow.name and cell.batch == other.batch)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limits", nargs="+", default=["1.65GB", "1.1GB"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--patience", type=float, default=25.0, help="seconds after which a case of a run ends")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds after which a run is given up")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
