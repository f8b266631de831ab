"""Check everything that only a GPU can show, within ten minutes: exactness, left-out waits, rates, and the table.

    python -m expertflow.benchmarks.gpu.check --out FOLDER        (make gpu-check ARGS="--out FOLDER")

Every part is a process of its own with a limit of its own, and what it found is kept in FOLDER/results.json, so that
nothing is lost by a part that fails, hangs or was not begun when time was up: run again with the same folder, and only
what is missing is run. FOLDER/gpu.md is the page of what there is. With --rehearse all of it runs on a CPU, over the
fake device and tiny models; its figures are no measurements.
Exit codes: 0 all is there and exact, 1 something failed, is not exact or is missing, 2 no GPU that torch can use.
Targets that are missed are for the page alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from expertflow.errors import UsageError

from .page import BANNER, write_page
from .parts import PARTS, Part
from .results import begin, failure_of, is_rehearsal, judge, result_of, save_failure, save_result, target_line
from .under_test import UnderTest

COMMAND = ("-m", "expertflow.benchmarks.gpu.check", "--part")
ROOT = Path(__file__).parents[2]
"""Parts import the tests' families from it."""
LAST_WORDS = 15


def main() -> int:
    arguments = parse_arguments()
    if arguments.part:
        run_part(arguments.part[0], Path(arguments.part[1]))
        return 0
    folder: Path = arguments.out.resolve()
    try:
        under_test(arguments.rehearse)
        begin(folder, arguments.rehearse)
    except UsageError as error:
        sys.stderr.write(f"gpu-check: {error}\n")
        return 2
    until = time.monotonic() + 60 * arguments.minutes
    for part in PARTS:
        if not arguments.parts or part.name in arguments.parts:
            _run(part, folder, until)
            write_page(folder)
    _show_targets(folder, arguments.rehearse)
    done = [result_of(folder, part.name) for part in PARTS]
    return 0 if all(result is not None and result.get("holds", True) for result in done) else 1


def under_test(rehearsal: bool) -> UnderTest:
    """Return what is under test. Raises UsageError if there is no GPU that torch can use."""
    if rehearsal:
        from .rehearsal import Rehearsal

        return Rehearsal()
    from .on_cuda import OnCuda

    return OnCuda()


def run_part(name: str, folder: Path) -> None:
    """Run one part in this process and keep its result."""
    part = next(part for part in PARTS if part.name == name)
    began = time.monotonic()
    found = part.run(under_test(is_rehearsal(folder)), folder)
    save_result(folder, name, found | {"took_s": round(time.monotonic() - began, 1)})


def _show_targets(folder: Path, rehearsal: bool) -> None:
    lines = [target_line(each) for each in judge(folder)] + ([BANNER] if rehearsal else [])
    sys.stderr.write("\n".join([*lines, f"see {folder / 'gpu.md'}"]) + "\n")


def _run(part: Part, folder: Path, until: float) -> None:
    """Run a part in a process of its own, unless it was run before."""
    if result_of(folder, part.name) is not None:
        return
    left_s = min(part.max_s, until - time.monotonic())
    if left_s < part.min_s:
        if failure_of(folder, part.name) is None:
            save_failure(folder, part.name, "not begun: time was up")
        return
    sys.stderr.write(f"{part.name}: {part.what}\n")
    try:
        code, errors = _run_limited([sys.executable, *COMMAND, part.name, str(folder)], left_s)
    except subprocess.TimeoutExpired:
        save_failure(folder, part.name, f"ended after {left_s:.0f} s, unfinished")
        return
    if code:
        save_failure(folder, part.name, "\n".join(errors.strip().splitlines()[-LAST_WORDS:]) or f"exit code {code}")


def _run_limited(command: list[str], limit_s: float) -> tuple[int, str]:
    """Return exit code and stderr; whatever it started ends with it. Raises TimeoutExpired."""
    none, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(
        command, stdin=none, stdout=none, stderr=pipe, text=True, cwd=ROOT, start_new_session=True
    ) as process:
        try:
            errors = process.communicate(timeout=limit_s)[1]
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, errors


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of results, kept between runs")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="after which no part is begun, and one that runs ends"
    )
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="only these")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)  # as this script starts itself
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, tiny: figures mean nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
