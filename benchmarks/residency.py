"""Model R with all and with a quarter of its experts in memory, beside who holds it all; then in less memory than it
takes, where resident transformers is killed (target S10).

python -m expertflow.benchmarks.residency --out docs/results/residency.json
"""

from __future__ import annotations

import argparse

from expertflow.configs.sizes import parse_size

from .comparison.cases import random_cases
from .comparison.compare import Cells, Comparison, Setting
from .comparison.rows import as_row
from .comparison.script import carry_out, parser_of
from .comparison.tables import Row
from .contender.accelerate_cpu import AccelerateCpu
from .contender.kind import Contender
from .contender.llama_cpp import LlamaCpp
from .contender.ours import ExpertFlow
from .contender.resident import Resident
from .contender.vllm_cpu import VllmCpu
from .models import model_r

SHARES = ("100%", "25%")
REPEATED: tuple[Contender, ...] = (*map(ExpertFlow, SHARES), Resident())
ONCE: tuple[Contender, ...] = (Resident("eager"), VllmCpu(), LlamaCpp(), AccelerateCpu())
LIMITED: tuple[Contender, ...] = (ExpertFlow("25%"), Resident(), AccelerateCpu(), VllmCpu())
"""What runs in a control group smaller than the model."""
TITLE = "Model R: resident, a quarter resident, and in less memory than it takes"
NOTES = (
    "Model R has OLMoE's architecture: 16 layers of 64 experts, eight used a token, random bfloat16 weights, 3.3 GB. "
    "ExpertFlow holds the share of the experts that its name says and reads the others from disk; everyone else holds "
    "the whole model. Prompts are 32 random tokens; ExpertFlow draws tokens at temperature 1, the others are made to "
    "run the same ones (vLLM draws its own).",
    "The rows with a limit run inside a memory control group smaller than the model, page cache counted. Who does not "
    "fit is killed by the kernel.",
    "*Identical*: of ExpertFlow, drawn tokens equal to those with all experts in memory; of the others, the likeliest "
    "token equal to that of transformers' grouped_mm backend.",
)


def main() -> None:
    arguments = _arguments()
    model = model_r()
    cases = random_cases(model, arguments.batches, arguments.steps)
    setting = Setting(model, cases, arguments.patience, arguments.timeout, arguments.minutes)
    carry_out(setting, arguments, lambda comparison: _run(comparison, arguments), _rows, TITLE, NOTES)


def _run(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Everyone once before anyone twice."""
    limit_bytes = parse_size(arguments.limit, "limit").of(0)
    for repeat in range(arguments.repeats):
        for contender in REPEATED:
            comparison.run(contender)
        if repeat == 0:
            for contender in LIMITED:
                comparison.run(contender, limit_bytes)
            for contender in ONCE:
                comparison.run(contender)


def _rows(cells: Cells) -> list[Row]:
    rows = []
    for (name, _, batch, state), cell in cells.items():
        first = ExpertFlow(SHARES[0]) if name.startswith(ExpertFlow.name) else Resident()
        rows.append(as_row(cell, None, cells.get((first.name, 0, batch, state))))
    return sorted(rows, key=lambda row: (row["limit_bytes"], row["batch"]))


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, batches=[1, 8], steps=16, repeats=3, patience_s=25, out="residency.json")
    parser.add_argument("--limit", default="1.65GB", help="of the control group, smaller than model R")
    return parser.parse_args()


if __name__ == "__main__":
    main()
