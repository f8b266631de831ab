"""ExpertFlow, accelerate and llama.cpp on model R under memory limits that the kernel enforces (target S4).

python -m expertflow.benchmarks.under_limit --out docs/results/under-limit.json
"""

from __future__ import annotations

import argparse

from expertflow.configs.sizes import parse_size

from .comparison.cases import random_cases
from .comparison.compare import Cells, Comparison, Setting
from .comparison.rows import as_row
from .comparison.script import carry_out, parser_of
from .comparison.tables import Row
from .contender.all import OFFLOADING
from .contender.ours import ExpertFlow
from .contender.resident import Resident
from .models import model_r

LIMITS = ("1.65GB", "1.1GB", "2.4GB")
"""Half the model, with which ExpertFlow holds a quarter of the experts; a third; with which it holds half of them."""
TITLE = "Model R under one memory limit"
NOTES = (
    "Model R has OLMoE's architecture: 16 layers of 64 experts, eight used a token, random bfloat16 weights, 3.3 GB. "
    "Every contender, with all its processes, runs in a memory control group of the size in the column *limit*, page "
    "cache counted; its files are dropped from the page cache before. The rows without a limit are references.",
    "Prompts are 32 random tokens; tokens are drawn at temperature 1 by ExpertFlow and forced on the others. Steps are "
    "paired by repeat and place; the interval is a bootstrap over both. A case ends early when patience ends.",
    "*Identical*: of ExpertFlow, drawn tokens equal to those with all experts in memory; of the others, the likeliest "
    "token equal to resident transformers' after the same tokens.",
)


def main() -> None:
    arguments = _arguments()
    model = model_r()
    cases = random_cases(model, arguments.batches, arguments.steps)
    setting = Setting(model, cases, arguments.patience, arguments.timeout, arguments.minutes)
    carry_out(setting, arguments, lambda comparison: _run(comparison, arguments), _rows, TITLE, NOTES)


def _run(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """First the references, without a limit; then every limit once before any twice."""
    for reference in (ExpertFlow("100%"), Resident()):
        if not any(name == reference.name for name, *_ in comparison.cells):
            comparison.run(reference)
    for _ in range(arguments.repeats):
        for limit_bytes in (parse_size(limit, "limits").of(0) for limit in arguments.limits):
            for contender in (ExpertFlow(), *(kind() for kind in OFFLOADING)):
                comparison.run(contender, limit_bytes)


def _rows(cells: Cells) -> list[Row]:
    """Beside the references: every repeat is compared with the one that they ran."""
    rows = []
    for (name, limit_bytes, batch, state), cell in cells.items():
        drawing = name.startswith(ExpertFlow.name)
        reference = cells.get((ExpertFlow("100%").name if drawing else Resident().name, 0, batch, state))
        ours = None if drawing else cells.get((ExpertFlow.name, limit_bytes, batch, state))
        rows.append(as_row(cell, ours, reference))
    return sorted(rows, key=lambda row: (-(row["limit_bytes"] or 10**12), row["batch"]))


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, batches=[1, 8], steps=24, repeats=3, patience_s=15, out="under-limit.json")
    parser.add_argument("--limits", nargs="+", default=LIMITS, help="in the order in which they are run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
