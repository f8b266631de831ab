"""Measure what users of a running engine feel: one file of this folder for each measurement.

python -m expertflow.benchmarks.serving http --out docs/results/http.json
python -m expertflow.benchmarks.serving streams --out docs/results/streams.json
python -m expertflow.benchmarks.serving prefix --out docs/results/prefix.json
python -m expertflow.benchmarks.serving chunked --out docs/results/chunked.json
python -m expertflow.benchmarks.serving options --out docs/results/options.json
python -m expertflow.benchmarks.serving ordering --out docs/results/ordering.json
python -m expertflow.benchmarks.serving ordering-replay --out docs/results/ordering-replay.json
python -m expertflow.benchmarks.serving lines --out docs/results/batch-lines.json
python -m expertflow.benchmarks.serving watching --out docs/results/watching.json

--minutes bounds each: rounds end before one that would not fit.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from ..report import write_json
from .budget import Budget

MEASUREMENTS = ("http", "streams", "prefix", "chunked", "options", "ordering", "ordering-replay", "lines", "watching")


def main() -> None:
    arguments = make_parser().parse_args()
    write_json(arguments.out, arguments.run(arguments, Budget(arguments.minutes)))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="measurement", required=True)
    for name in MEASUREMENTS:
        module = importlib.import_module(f".{name.replace('-', '_')}", __package__)
        words = module.__doc__ or ""
        command = commands.add_parser(name, help=words.splitlines()[0], description=words)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        module.add_options(command)
        command.add_argument("--minutes", type=float, default=module.MINUTES, help="time that it may take")
        command.add_argument("--out", type=Path, help="write the figures as JSON")
        command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    main()
