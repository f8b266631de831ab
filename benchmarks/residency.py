"""How fast, how large and how exact ExpertFlow is as less of model R's experts fit; and where resident transformers is
killed (target S10).

python -m expertflow.benchmarks.residency --out docs/results/residency.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from expertflow.configs.sizes import parse_size
from rich.console import Console

from .comparison.compare import Comparison, Setting
from .comparison.rows import as_row
from .comparison.tables import Row, markdown
from .comparison.writing import write
from .contender.ours import ExpertFlow
from .contender.resident import Resident
from .enforced.memory_group import NoLimit
from .models import MODEL_R, model_r

SHARES = ("100%", "50%", "25%", "12.5%")
BACKENDS = ("grouped_mm", "eager")
TITLE = "Model R with less and less of its experts in memory"
NOTES = (
    "*Identical*: of ExpertFlow, drawn tokens (temperature 1) equal to those with all experts resident; of "
    "transformers, the likeliest token equal to its grouped_mm backend's. The rows with a limit run inside a memory "
    "control group smaller than the model.",
)


def main() -> None:
    arguments = _arguments()
    console = Console(stderr=True)
    setting = Setting(model_r(), MODEL_R["vocab_size"] or 0, arguments.batches, arguments.steps, 25.0, 240.0)
    comparison, reason = Comparison(setting, console.print), ""
    for _ in range(arguments.repeats):
        for contender in (*map(ExpertFlow, SHARES), *map(Resident, BACKENDS)):
            comparison.run(contender)
    try:
        limit_bytes = parse_size(arguments.limit, "limit").of(0)
        comparison.run(ExpertFlow("25%"), limit_bytes)
        comparison.run(Resident(), limit_bytes)
    except NoLimit as error:
        reason = f"No memory limit can be enforced here: {error}"
    rows = _rows(comparison)
    console.print(reason, markdown(rows))
    if arguments.out:
        write(rows, arguments.out, TITLE, [*NOTES, *filter(None, [reason])])


def _rows(comparison: Comparison) -> list[Row]:
    cells = comparison.cells
    rows = []
    for (name, _, batch), cell in cells.items():
        first = ExpertFlow(SHARES[0]) if name.startswith(ExpertFlow.name) else Resident(BACKENDS[0])
        rows.append(as_row(cell, None, cells[first.name, 0, batch]))
    return sorted(rows, key=lambda row: row["batch"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", default="1.65GB", help="of the control group, smaller than the model")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
