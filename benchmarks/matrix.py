"""ExpertFlow on the widened built-in model: less and less of the experts in memory, more and more sequences, right
after a start and warmed up.

python -m expertflow.benchmarks.matrix --out docs/results/matrix.json
"""

from __future__ import annotations

import argparse

from .comparison.cases import text_cases
from .comparison.compare import Cells, Comparison, Setting
from .comparison.rows import as_row
from .comparison.script import carry_out, parser_of
from .comparison.tables import Row
from .contender.ours import ExpertFlow
from .models import widened

SHARES = ("100%", "50%", "25%", "12.5%")
TITLE = "ExpertFlow by budget, batch size and state"
NOTES = (
    "The built-in language model, *widened* to 0.9 GB of experts (6 layers of 32, four used a token): its text and its "
    "routing are those of a trained model. Each row: how much of the experts ExpertFlow may hold in memory, the others "
    "are read from disk when they are needed or foreseen. Prompts are 32 tokens of held-out text.",
    "Every repeat starts the engine anew, with the checkpoint out of the page cache, for each budget and batch size. "
    "*Cold*: the first prompts after the start; *warm*: other prompts after those.",
    "*Identical*: tokens, drawn at temperature 1 with a fixed seed, equal to those with all experts in memory.",
)


def main() -> None:
    arguments = _arguments()
    model = widened()
    cases = text_cases(model, arguments.batches, arguments.cold_steps, arguments.steps)
    setting = Setting(model, cases, arguments.patience, arguments.timeout, arguments.minutes)
    carry_out(setting, arguments, lambda comparison: _run(comparison, arguments), _rows, TITLE, NOTES)


def _run(comparison: Comparison, arguments: argparse.Namespace) -> None:
    for _ in range(arguments.repeats):
        for batch in arguments.batches:
            for share in arguments.shares:
                comparison.run(ExpertFlow(share), batch=batch)


def _rows(cells: Cells) -> list[Row]:
    resident = ExpertFlow(SHARES[0]).name
    rows = [as_row(cell, None, cells.get((resident, 0, cell.batch, cell.state))) for cell in cells.values()]
    return sorted(rows, key=lambda row: (row["state"], row["batch"]))


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, batches=[1, 8, 32], steps=16, repeats=3, patience_s=20, out="matrix.json")
    parser.add_argument("--cold-steps", type=int, default=6, help="decoded tokens of the first case after a start")
    parser.add_argument("--shares", nargs="+", default=SHARES, help="of the experts, in memory")
    return parser.parse_args()


if __name__ == "__main__":
    main()
