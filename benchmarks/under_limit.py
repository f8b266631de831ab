"""ExpertFlow, accelerate and llama.cpp on model R under memory limits that the kernel enforces (target S4).

python -m expertflow.benchmarks.under_limit --limits 1.65GB 1.1GB --batches 1 8 --out docs/results/under-limit.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from expertflow.configs.sizes import parse_size
from rich.console import Console

from .comparison.compare import Comparison, Setting
from .comparison.interrupted import ended_by_signal
from .comparison.rows import as_row
from .comparison.tables import Row, markdown
from .comparison.writing import read_cells, write
from .contender.all import OFFLOADING
from .contender.ours import ExpertFlow
from .contender.resident import Resident
from .enforced.memory_group import NoLimit
from .models import MODEL_R, model_r

TITLE = "Model R under one memory limit"
NOTES = (
    "Every contender, with all its processes, runs in a memory control group of this size, page cache counted; its "
    "files are dropped from the page cache before. Prompts are random, tokens are drawn at temperature 1 by ExpertFlow "
    "and forced on the others. Steps are paired by repeat and place; the interval is a bootstrap over both.",
    "*Identical*: of ExpertFlow, drawn tokens equal to those with all experts resident; of the others, the likeliest "
    "token equal to resident transformers' after the same tokens.",
)


def main() -> None:
    arguments = _arguments()
    console = Console(stderr=True)
    setting = Setting(
        model_r(), MODEL_R["vocab_size"] or 0, arguments.batches, arguments.steps, arguments.patience, arguments.timeout
    )
    comparison, reason = Comparison(setting, console.print), ""
    if arguments.resume:
        comparison.resume(read_cells(arguments.out))
    try:
        with ended_by_signal():
            _run(comparison, [parse_size(limit, "limits").of(0) for limit in arguments.limits], arguments.repeats)
    except NoLimit as error:
        reason = f"No memory limit can be enforced here: {error}"
    finally:
        rows, cells = _rows(comparison), list(comparison.cells.values())
        write(rows or [{"failure": reason}], cells, arguments.out, TITLE, [*NOTES, *filter(None, [reason])])
    console.print(reason or "", markdown(rows))


def _run(comparison: Comparison, limits: list[int], repeats: int) -> None:
    """First the references, without a limit."""
    for reference in (ExpertFlow("100%"), Resident()):
        if not any(name == reference.name for name, _, _ in comparison.cells):
            comparison.run(reference)
    for limit_bytes in limits:
        for _ in range(repeats):
            for contender in (ExpertFlow(), *(kind() for kind in OFFLOADING)):
                comparison.run(contender, limit_bytes)


def _rows(comparison: Comparison) -> list[Row]:
    """Beside the references: every repeat is compared with the one that they ran."""
    cells, rows = comparison.cells, []
    for (name, limit_bytes, batch), cell in cells.items():
        drawing = name.startswith(ExpertFlow.name)
        reference = cells.get((ExpertFlow("100%").name if drawing else Resident().name, 0, batch))
        ours = None if drawing else cells.get((ExpertFlow.name, limit_bytes, batch))
        rows.append(as_row(cell, ours, reference))
    return sorted(rows, key=lambda row: (-(row["limit_bytes"] or 10**12), row["batch"]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limits", nargs="*", default=["1.65GB", "1.1GB"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--patience", type=float, default=25.0, help="seconds after which a case of a run ends")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds after which a run is given up")
    parser.add_argument("--resume", action="store_true", help="add repeats to those that the file --out has")
    parser.add_argument("--out", type=Path, default=Path("under-limit.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
