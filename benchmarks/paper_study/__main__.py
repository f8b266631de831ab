"""Measure the paper's comparison on a link that costs no core: systems over slots, batches, rates of the link and
workloads.

python -m expertflow.benchmarks.paper_study --minutes 20     the most telling cells first; a later run goes on
python -m expertflow.benchmarks.paper_study --prepare        trains gates and records for the oracle; on a busy machine
python -m expertflow.benchmarks.paper_study --quick          a few short cells, into a folder of their own
python -m expertflow.benchmarks.paper_study --only-tables    tables and picture of the cells that are there
python -m expertflow.benchmarks.paper_study --replay         an oracle for one part at a time, without an engine

Systems of one setting are measured side by side, their engines taking blocks in turn; each such run has a file in
docs/results/paper/runs/.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from expertflow.configs.user_cache import cache_folder
from expertflow.workers.predictor.registry import FILE_NAME
from rich.console import Console

from ..experiments.cell import trained_gates
from ..machine import cpu_kind
from ..models import EXAMPLES, folder_of
from ..report import write_json
from .cells import BASE, BATCHES, LINKS, MODELS, SLOTS, Cell, Choice, Run, all_runs
from .measure import Work
from .picture import draw_study
from .replaying import Row, Setting, ablate, recorded_trace
from .study import Study
from .systems import NAMES, find_system
from .tables import page, systems_list
from .workloads import held_out_text

FOLDER = Path(__file__).parents[2] / "docs" / "results" / "paper"
REPLAYED_CHARACTERS, REPLAYED_TOKENS, REPLAYED_BATCHES = 20_000, 128, (8, 16)


def main() -> None:
    arguments = parse_arguments()
    out = Path(tempfile.mkdtemp(prefix="paper-study-")) if arguments.quick and not arguments.out else arguments.out
    console = Console(stderr=True)
    out = out or default_folder(arguments.compute_threads)
    study = Study(out, kept() / f"{arguments.tokens}-{arguments.rounds}", works(arguments), console.log)
    if arguments.prepare:
        study.prepare(chosen_runs(arguments))
        return
    if arguments.replay:
        replay(study, arguments, console)
    elif not arguments.only_tables:
        study.run(chosen_runs(arguments), arguments.minutes)
    write_pages(study, arguments)
    console.log(f"tables and picture are in {study.out.name}")


def default_folder(compute_threads: int) -> Path:
    """Return the folder of the results, one of its own for another number of threads than the engine chooses."""
    return FOLDER / f"threads-{compute_threads}" if compute_threads else FOLDER


def kept() -> Path:
    """Return the folder of what is made once and not kept beside the results: recordings and the replayed trace."""
    return cache_folder() / "paper-study"


def replay(study: Study, arguments: argparse.Namespace, console: Console) -> None:
    """Write replay.json: a row a loader in each setting that the options choose."""
    trace = arguments.trace or recorded_trace(EXAMPLES / "model", held_out_text()[:REPLAYED_CHARACTERS], kept())
    rows: list[Row] = []
    for batch in arguments.batches or REPLAYED_BATCHES:
        for link in arguments.links or (BASE.link,):
            setting = Setting(trace, EXAMPLES / "model" / FILE_NAME, batch, link, 0.25, REPLAYED_TOKENS * batch)
            console.log(f"batch {batch}, link {link:g}: belady loads {setting.belady_loads():.1f} a step")
            for row in ablate(setting):
                console.log(f"{row['loader']}: {row['step_ms']} ms, {row['loads_a_step']} loads")
                rows.append(row)
    write_json(study.out / "replay.json", rows)


def chosen_runs(arguments: argparse.Namespace) -> list[Run]:
    """Return the runs that the options allow, those that tell most first; without the paper's if it is not trained."""
    if arguments.quick:
        return [Run(all_runs()[0].cells[:2])]
    only = Choice(arguments.systems, arguments.models, arguments.slots, arguments.batches, arguments.links)
    untrained = [] if arguments.paper_file else [name for name in NAMES if find_system(name).needs == "paper"]
    return [run.without(untrained) for run in all_runs() if only.allows(run)]


def works(arguments: argparse.Namespace) -> Callable[[Cell], Work]:
    """Return a function from a cell to what it does."""
    short = 8 if arguments.quick else 0
    tokens, settling = short or arguments.tokens, short or arguments.settling_tokens

    def work_of(cell: Cell) -> Work:
        folder = folder_of(cell.model)
        files = _trained(cell, folder, arguments.paper_file)
        warm_tokens, threads = short or arguments.warm_tokens, arguments.compute_threads
        return Work(folder, files, tokens, warm_tokens, settling, arguments.rounds, compute_threads=threads)

    return work_of


def _trained(cell: Cell, folder: Path, paper_file: Path | None) -> dict[str, Path]:
    """Return the trained files of a cell's system by kind; gates are trained at the first call, in a minute or two."""
    files = {"path": folder / FILE_NAME} if (folder / FILE_NAME).is_file() else {}
    if paper_file:
        files["paper"] = paper_file.resolve()
    if find_system(cell.system).needs == "gates":
        text = (EXAMPLES / "held_out.txt").read_text()
        files["gates"] = trained_gates(folder, text[: len(text) // 2])
    return files


def write_pages(study: Study, arguments: argparse.Namespace) -> None:
    """Write tables.md and study.png of all results that are there."""
    runs = study.runs()
    needs = ", ".join(f"{name} {rate / 1e6:,.0f} MB/s" for name, rate in study.needs().items())
    about = f"{cpu_kind()}. What on demand needs, by model and batch: {needs or 'not measured'}.\n\n{systems_list()}"
    study.out.mkdir(parents=True, exist_ok=True)
    (study.out / "tables.md").write_text(page(command(sys.argv), about, runs, study.failures))
    draw_study(runs, study.out / "study.png")


def command(argv: list[str]) -> str:
    """Return the command as it was called, files by their names alone."""
    words = [Path(word).name if "/" in word else word for word in argv[1:]]
    return shlex.join(["python", "-m", "expertflow.benchmarks.paper_study", *words])


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0, help="begin no run after so many; 0: all runs")
    parser.add_argument("--quick", action="store_true", help="two short cells, into a temporary folder")
    parser.add_argument("--only-tables", action="store_true", help="measure nothing")
    parser.add_argument("--prepare", action="store_true", help="make what cells need and what is not timed")
    parser.add_argument("--replay", action="store_true", help="replay recorded routing with oracles, start no engine")
    parser.add_argument("--trace", type=Path, help="replay this trace of the built-in model, widened or not")
    parser.add_argument("--systems", nargs="+", choices=NAMES, metavar="NAME", default=[])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[])
    parser.add_argument("--slots", nargs="+", choices=SLOTS, default=[])
    parser.add_argument("--batches", nargs="+", type=int, choices=BATCHES, default=[])
    parser.add_argument("--links", nargs="+", type=float, choices=LINKS, default=[])
    parser.add_argument("--tokens", type=int, default=24, help="new tokens of a sequence")
    parser.add_argument("--warm-tokens", type=int, default=16)
    parser.add_argument("--settling-tokens", type=int, default=64, help="warm-up of systems that try their ways first")
    parser.add_argument("--rounds", type=int, default=1, help="blocks of each workload")
    parser.add_argument("--compute-threads", type=int, default=0, help="threads of compute; 0: the engine chooses")
    parser.add_argument("--paper-file", type=Path, help="the paper's predictor (expertflow train --kind paper)")
    parser.add_argument("--out", type=Path, help="folder of the results; default: docs/results/paper")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
