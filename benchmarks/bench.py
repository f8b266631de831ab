"""`make bench`: every part in turn, within an hour; tables, pictures and a page of targets in docs/results.

python -m expertflow.benchmarks.bench                    everything
python -m expertflow.benchmarks.bench --only S4 S10      the parts that serve these targets
python -m expertflow.benchmarks.bench --quick            a first look, a few minutes a part
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .contender.all import prepare_all
from .hour.parts import PARTS, RESULTS, Part
from .hour.plan import plan
from .hour.summary import page, verdicts_of
from .machine import machine_line

STOPPING_S = 30.0
PIECEMEAL = "Parts were run one by one."


def main() -> None:
    arguments = _arguments()
    console = Console()
    if arguments.page:
        _write_page(PIECEMEAL, {})
        return
    chosen = plan(PARTS, arguments.only, arguments.minutes, arguments.quick)
    _show_plan(console, chosen.parts, arguments.quick)
    for part, reason in chosen.left_out.items():
        console.print(f"Left out: {part} ({reason})")
    for name, reason in prepare_all().items():
        console.print(f"Missing: {name} ({reason})")
    outcomes = dict(chosen.left_out) | _run_all(console, chosen.parts, arguments)
    _write_page(f"{_setting(arguments)} This machine: {machine_line()}", outcomes)
    for verdict in (verdict for part in chosen.parts for verdict in verdicts_of(part)):
        console.print(" · ".join(verdict.cells))


def _write_page(setting: str, outcomes: dict[str, str]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "bench.md").write_text(page(PARTS, setting, outcomes))


def _show_plan(console: Console, parts: Sequence[Part], quick: bool) -> None:
    table = Table("part", "targets", "minutes")
    for part in parts:
        table.add_row(part.name, " ".join(part.targets), f"{part.minutes_of(quick):.0f}")
    total = sum(part.minutes_of(quick) for part in parts)
    console.print(table, f"About {total:.0f} minutes; the first run also builds what the contenders need, before.")


def _run_all(console: Console, parts: Sequence[Part], arguments: argparse.Namespace) -> dict[str, str]:
    """Each part in a process of its own, as long as there is time."""
    ends = time.monotonic() + 60 * arguments.minutes
    outcomes = {}
    for part in parts:
        console.rule(part.name)
        begun = time.monotonic()
        outcomes[part.name] = _run(part.arguments(arguments.quick), ends - begun)
        console.print(f"{part.name}: {outcomes[part.name]}, {(time.monotonic() - begun) / 60:.1f} minutes")
    return outcomes


def _run(command: list[str], left_s: float) -> str:
    if left_s <= 0:
        return "not run: time is over"
    with subprocess.Popen([sys.executable, *command]) as process:
        try:
            status = process.wait(left_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait(STOPPING_S)
            return "stopped: time is over"
    return "done" if status == 0 else f"failed: exit status {status}"


def _setting(arguments: argparse.Namespace) -> str:
    command = "python -m expertflow.benchmarks.bench" + (" --quick" if arguments.quick else "")
    return f"Last run: `{command}`, {time.strftime('%Y-%m-%d')}."


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="after which nothing runs any more")
    parser.add_argument("--only", nargs="+", default=[], metavar="TARGET", help="S1 to S10, or names of parts")
    parser.add_argument(
        "--page", action="store_true", help="run nothing: the page of targets from what docs/results has"
    )
    parser.add_argument("--quick", action="store_true", help="few steps and repeats: shows that it runs, proves little")
    return parser.parse_args()


if __name__ == "__main__":
    main()
