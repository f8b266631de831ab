"""Measure transfers: from disk, dequantised on the way, and over an emulated link.

python -m expertflow.benchmarks.transfer disk-rate --out docs/results/disk-rate.json
python -m expertflow.benchmarks.transfer disk-steps --out docs/results/disk-steps.json
python -m expertflow.benchmarks.transfer disk-steps --models r --batches 1 8 --contenders auto
python -m expertflow.benchmarks.transfer fill-rates --out docs/results/fill-rates.json
python -m expertflow.benchmarks.transfer layouts --out docs/results/layouts.json
python -m expertflow.benchmarks.transfer link --out docs/results/link.json
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from ..report import write_json

MEASUREMENTS = ("disk-rate", "disk-steps", "fill-rates", "layouts", "link")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="measurement", required=True)
    for name in MEASUREMENTS:
        module = importlib.import_module(f".{name.replace('-', '_')}", __package__)
        words = module.__doc__ or ""
        command = commands.add_parser(name, help=words.splitlines()[0], description=words)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        module.add_options(command)
        command.add_argument("--out", type=Path, help="write the figures as JSON")
        command.set_defaults(run=module.run)
    arguments = parser.parse_args()
    write_json(arguments.out, arguments.run(arguments))


if __name__ == "__main__":
    main()
