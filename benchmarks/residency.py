"""How fast, how large and how exact ExpertFlow is as less of a model's experts fit; and where resident transformers is
killed (target S10).

python -m expertflow.benchmarks.residency --out docs/results/residency.json
python -m expertflow.benchmarks.residency --model widened --batches 1 8 32 --out docs/results/residency-widened.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from expertflow.configs.sizes import parse_size
from rich.console import Console

from .comparison.compare import Comparison, Setting
from .comparison.interrupted import ended_by_signal
from .comparison.rows import as_row
from .comparison.tables import Row, markdown
from .comparison.writing import read_cells, write
from .contender.accelerate_cpu import AccelerateCpu
from .contender.kind import Contender
from .contender.llama_cpp import LlamaCpp
from .contender.ours import ExpertFlow
from .contender.resident import Resident
from .contender.vllm_cpu import VllmCpu
from .enforced.memory_group import NoLimit
from .models import model_r, widened

PATIENCE_S, TIMEOUT_S = 25.0, 240.0
SHARES = ("100%", "50%", "25%", "12.5%")
BACKENDS = ("grouped_mm", "eager")
OTHERS: dict[str, tuple[Contender, ...]] = {"r": (AccelerateCpu(), LlamaCpp(), VllmCpu()), "widened": ()}
LIMITED: dict[str, tuple[Contender, ...]] = {"r": (ExpertFlow("25%"), Resident(), AccelerateCpu()), "widened": ()}
"""What runs in a control group smaller than the model."""
TITLE = "Less and less of the experts in memory"
NOTES = (
    "*Identical*: of ExpertFlow, drawn tokens (temperature 1) equal to those with all experts resident; of "
    "transformers, the likeliest token equal to its grouped_mm backend's. The rows with a limit run inside a memory "
    "control group smaller than the model.",
)


def main() -> None:
    arguments = _arguments()
    console = Console(stderr=True)
    model = model_r() if arguments.model == "r" else widened()
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    setting = Setting(model, vocabulary, arguments.batches, arguments.steps, PATIENCE_S, TIMEOUT_S)
    comparison, reason = Comparison(setting, console.print), ""
    if arguments.resume:
        comparison.resume(read_cells(arguments.out))
    try:
        with ended_by_signal():
            _run(comparison, arguments)
    except NoLimit as error:
        reason = f"No memory limit can be enforced here: {error}"
    finally:
        rows, cells = _rows(comparison), list(comparison.cells.values())
        notes = [*NOTES, *filter(None, [reason])]
        write(rows, cells, arguments.out, f"{TITLE}: model {arguments.model}", notes)
    console.print(reason, markdown(rows))


def _run(comparison: Comparison, arguments: argparse.Namespace) -> None:
    for _ in range(arguments.repeats):
        for contender in (*map(ExpertFlow, SHARES), *map(Resident, BACKENDS), *OTHERS[arguments.model]):
            comparison.run(contender)
    for contender in LIMITED[arguments.model]:
        comparison.run(contender, parse_size(arguments.limit, "limit").of(0))


def _rows(comparison: Comparison) -> list[Row]:
    cells = comparison.cells
    rows = []
    for (name, _, batch), cell in cells.items():
        first = ExpertFlow(SHARES[0]) if name.startswith(ExpertFlow.name) else Resident(BACKENDS[0])
        rows.append(as_row(cell, None, cells.get((first.name, 0, batch))))
    return sorted(rows, key=lambda row: row["batch"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=("r", "widened"), default="r", help="r: random OLMoE of 3.3 GB")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", default="1.65GB", help="of the control group, smaller than model R")
    parser.add_argument("--resume", action="store_true", help="add repeats to those that the file --out has")
    parser.add_argument("--out", type=Path, default=Path("residency.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
