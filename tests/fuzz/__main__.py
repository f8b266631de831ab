"""Fuzz every reader of bytes that come from elsewhere, guided by coverage: `make fuzz`.

    python -m expertflow.tests.fuzz --minutes 30 --jobs 1 --seed 0 --out build/fuzz

Needs the extra `fuzz` (atheris). All targets get the same time, each in a process of its own with limits on memory and
on the time of one input. Inputs that show a fault lie in the folder `--out` afterwards, with what they showed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from expertflow.benchmarks.report import show_table, write_json
from expertflow.tests.fuzz.all_targets import TARGETS
from expertflow.tests.fuzz.drive import EXIT, REPORT, folder_of

MIN_SECONDS = 3.0
LEFT_BY_LIBRARY = re.compile(r"(crash|timeout|oom|leak|slow-unit)-[0-9a-f]+")


class Outcome(NamedTuple):
    """What came of one target."""

    name: str
    runs: int
    seconds: float
    faults: list[str]


def main() -> None:
    arguments = make_parser().parse_args()
    if importlib.util.find_spec("atheris") is None:
        sys.exit("fuzzing needs atheris: pip install 'expertflow-runtime[fuzz]'")
    names = [name for name in TARGETS if not arguments.only or any(part in name for part in arguments.only)]
    seconds = max(MIN_SECONDS, 60 * arguments.minutes * arguments.jobs / len(names))
    shares = [share for job in range(arguments.jobs) if (share := names[job :: arguments.jobs])]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = pool.map(lambda share: fuzz_targets(share, seconds, arguments.seed, arguments.out), shares)
        outcomes = [outcome for outcomes in found for outcome in outcomes]
    show_table("fuzzing", [_row(each) for each in [*outcomes, _total(outcomes)]])
    for each in outcomes:
        for fault in each.faults:
            print(f"{each.name}: {fault}")  # noqa: T201 - a program's output
    write_json(arguments.json, {"seed": arguments.seed, "targets": [_row(each) for each in outcomes]})
    sys.exit(1 if any(each.faults for each in outcomes) else 0)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="time of all targets together")
    parser.add_argument("--jobs", type=int, default=1, help="targets at the same time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], metavar="PART", help="targets whose names have this in them")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="folder for inputs that show a fault")
    parser.add_argument("--json", type=Path, help="write the table as JSON")
    return parser


def fuzz_targets(names: Sequence[str], seconds: float, seed: int, out: Path) -> list[Outcome]:
    """Run targets one after the other in one process, which copies itself for each. A fault is any unusual end, too."""
    begun_s = time.time()
    command = [sys.executable, "-P", "-m", "expertflow.tests.fuzz.drive", *names]
    command += ["--seconds", str(seconds), "--seed", str(seed), "--out", str(out)]
    code = subprocess.run(command, check=False).returncode
    return [_outcome(name, folder_of(out, name), code, begun_s) for name in names]


def _outcome(name: str, folder: Path, code: int, begun_s: float) -> Outcome:
    """Read what a target left. `code` is that of the process of all of them."""
    report: dict[str, Any] = {"runs": 0, "seconds": 0.0, "faults": {}}
    if _is_fresh(folder / REPORT, begun_s):
        report = json.loads((folder / REPORT).read_text())
    faults = [f"{what} ({folder / file})" for what, file in report["faults"].items()]
    left = [path for path in folder.glob("*") if LEFT_BY_LIBRARY.fullmatch(path.name) and _is_fresh(path, begun_s)]
    faults += [f"{path.name} ({path})" for path in left]
    end = (folder / EXIT).read_text() if _is_fresh(folder / EXIT, begun_s) else f"was not run: all ended with {code}"
    if end and not left:
        faults.append(f"its process {end}")
    return Outcome(name, report["runs"], report["seconds"], faults)


def _is_fresh(path: Path, begun_s: float) -> bool:
    """Return whether this run wrote a file, and not one before."""
    return path.is_file() and path.stat().st_mtime >= begun_s


def _total(outcomes: Sequence[Outcome]) -> Outcome:
    runs, seconds = sum(each.runs for each in outcomes), sum(each.seconds for each in outcomes)
    return Outcome("all", runs, seconds, [fault for each in outcomes for fault in each.faults])


def _row(each: Outcome) -> dict[str, Any]:
    rate = round(each.runs / each.seconds) if each.seconds else 0
    return {"target": each.name, "runs": each.runs, "runs per second": rate, "found": len(each.faults)}


if __name__ == "__main__":
    main()
