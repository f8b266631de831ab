"""Compare systems over slots and batch sizes on the widened model; by replay on a trace as well, if one is given.

python -m expertflow.benchmarks.experiments                                  writes docs/results/experiments/
python -m expertflow.benchmarks.experiments --paper-file FILE --trace FILE   with the paper's predictor, and replay
python -m expertflow.benchmarks.experiments --only-replay --trace FILE       replay alone

Every cell is a fresh engine that decodes the same sequences, with drawn tokens; tokens are compared. The main systems
run at all slots and batch sizes, the others at --slots-of-all and --batch-of-all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from expertflow.errors import ExpertFlowError
from expertflow.workers.predictor.registry import FILE_NAME
from rich.console import Console

from ..models import EXAMPLES, widened
from ..plots.experiments import draw_experiments
from .cell import Work, run_cell, trained_gates
from .figures import share_equal
from .replay import replay_all
from .systems import SYSTEMS, System
from .tables import Failure, Results, page

FOLDER = Path(__file__).parents[2] / "docs" / "results" / "experiments"
PACKAGES = ("expertflow-runtime", "torch", "transformers", "numpy")


@dataclass
class Run:
    """Hold the cells of a run, and what came of them so far."""

    work: Work
    files: dict[str, Path]
    out: Path
    results: Results
    references: dict[int, list[list[int]]] = field(default_factory=dict)
    """Tokens of the system that came first, by batch size."""

    def cell(self, system: System, slots: str, batch: int) -> None:
        """Run one, and write what there is."""
        try:
            figures, measured = run_cell(self.work, system, self.files, slots, batch)
        except ExpertFlowError as error:
            cell = f"{system.name} ({slots}, batch {batch})"
            self.results["left_out"].append(Failure(cell=cell, why=str(error)))
            return
        reference = self.references.setdefault(batch, measured.generated)
        figures["equal_tokens"] = share_equal(measured.generated, reference)
        self.results["rows"].append(figures)
        self.write()

    def write(self) -> None:
        """Write the tables; a run that is cut short leaves those of the cells that are done."""
        (self.out / "results.json").write_text(json.dumps(self.results, indent=1) + "\n")
        (self.out / "results.md").write_text(page(self.results))


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    about = {"command": command(sys.argv), "versions": versions()}
    if not arguments.only_replay:
        _run_all(arguments, about["command"], console)
    if arguments.trace:
        console.log(f"replay of {arguments.trace.name}")
        replay_all(
            arguments.trace,
            arguments.out,
            arguments.replay_slots,
            arguments.replay_batches,
            arguments.replay_tokens,
            about,
        )


def _run_all(arguments: argparse.Namespace, asked: str, console: Console) -> None:
    text = (EXAMPLES / "held_out.txt").read_text()
    lessons, questions = text[: len(text) // 2], text[len(text) // 2 :]
    model = widened()
    systems, files, left_out = _ready(arguments, model, lessons)
    results = Results(
        command=asked,
        versions=versions(),
        setting=f"{_setting(arguments)} ExpertFlow's predictor: {'path' if 'path' in files else 'token table'}.",
        systems={system.name: system.what for system in systems},
        rows=[],
        left_out=left_out,
    )
    shared = {"model": str(model), "tier": arguments.tier, "dtype": arguments.dtype}
    shared |= {"link_rate": arguments.link_rate} if arguments.tier == "host" else {}
    work = Work(questions, shared, arguments.tokens, arguments.warm_tokens, arguments.blocks)
    run = Run(work, files, arguments.out, results)
    cells = list(_cells(arguments, systems))
    for number, (system, slots, batch) in enumerate(cells, start=1):
        console.log(f"{number} of {len(cells)}: {system.name}, {slots}, batch {batch}")
        run.cell(system, slots, batch)
    run.write()
    draw_experiments(results["rows"], arguments.out)


def _ready(
    arguments: argparse.Namespace, model: Path, lessons: str
) -> tuple[list[System], dict[str, Path], list[Failure]]:
    """Return the systems that can run, the trained files they need, and those that cannot."""
    systems = [system for system in SYSTEMS if not arguments.systems or system.name in arguments.systems]
    files: dict[str, Path] = {}
    if (model / FILE_NAME).is_file():
        files["path"] = model / FILE_NAME
    if any(system.needs == "gates" for system in systems):
        files["gates"] = trained_gates(model, lessons)
    if arguments.paper_file:
        files["paper"] = arguments.paper_file.resolve()
    missing = [system for system in systems if system.needs and system.needs not in files]
    why = "no trained predictor was given (`expertflow train --kind paper`, then --paper-file)"
    left_out = [Failure(cell=system.name, why=why) for system in missing]
    return [system for system in systems if system not in missing], files, left_out


def _cells(arguments: argparse.Namespace, systems: list[System]) -> Iterator[tuple[System, str, int]]:
    """Yield the cells, side by side what is compared, since a machine changes in the course of a run."""
    for batch in arguments.batches:
        for slots in arguments.slots:
            everyone = (slots, batch) == (arguments.slots_of_all, arguments.batch_of_all)
            for system in systems:
                if everyone or system.group == "main":
                    yield system, slots, batch


def _setting(arguments: argparse.Namespace) -> str:
    link = f"host tier, link emulated at {arguments.link_rate}/s" if arguments.tier == "host" else "disk tier"
    amount = f"{arguments.blocks} blocks of as many sequences as the batch has, {arguments.tokens} new tokens each"
    return (
        f"Widened built-in model in {arguments.dtype} (0.9 GB of experts in bfloat16), {link}; {amount}, drawn at "
        "temperature 1 with the same seeds, after a warm-up."
    )


def command(argv: list[str]) -> str:
    """Return the command as it was called, files by their names alone."""
    words = [Path(word).name if "/" in word else word for word in argv[1:]]
    return shlex.join(["python", "-m", "expertflow.benchmarks.experiments", *words])


def versions() -> dict[str, str]:
    found = {name: version(name) for name in PACKAGES}
    return found | {"python": platform.python_version(), "processors": str(os.cpu_count())}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slots", nargs="+", default=["12.5%", "25%", "50%"], help="expert memory, shares")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="sequences at a time")
    parser.add_argument("--slots-of-all", default="25%", help="where all systems run, not only the main ones")
    parser.add_argument("--batch-of-all", type=int, default=8)
    parser.add_argument("--systems", nargs="+", choices=[system.name for system in SYSTEMS], metavar="NAME", default=[])
    parser.add_argument("--tier", choices=("host", "disk"), default="host")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--link-rate", default="4GB", help="host tier: emulate a link of so many bytes a second")
    parser.add_argument("--tokens", type=int, default=24, help="new tokens of a sequence")
    parser.add_argument("--warm-tokens", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument(
        "--paper-file", type=Path, help="the paper's predictor, trained (expertflow train --kind paper)"
    )
    parser.add_argument("--trace", type=Path, help="replay the policies on this trace, too")
    parser.add_argument("--only-replay", action="store_true")
    parser.add_argument("--replay-slots", default="12.5%,25%,50%")
    parser.add_argument("--replay-batches", nargs="+", type=int, default=[1, 2, 8])
    parser.add_argument("--replay-tokens", type=int, default=3000, help="of the trace; 0: all")
    parser.add_argument("--out", type=Path, default=FOLDER)
    return parser.parse_args()


if __name__ == "__main__":
    main()
