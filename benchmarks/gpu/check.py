"""Everything that only a GPU can show, within ten minutes: exactness, waits that are left out, rates, and the table.

    python -m expertflow.benchmarks.gpu.check --out FOLDER        (make gpu-check ARGS="--out FOLDER")

Every part is a process of its own and leaves FOLDER/PART.json, so that nothing is lost by a part that fails or when
time is up: run again with the same folder, and only what is missing is run. FOLDER/gpu.md is the page of what there is.
Exit codes: 0 all is there and holds, 1 something failed, does not hold or is missing, 2 no GPU that torch can use.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from expertflow.errors import UsageError
from expertflow.workers.compute.device.cuda import require_cuda

from .page import write_page
from .parts import PARTS, Part
from .results import failure_of, result_of, save_failure

COMMAND = ("-m", "expertflow.benchmarks.gpu.part")
ROOT = Path(__file__).parents[2]
"""Parts import the tests' families from it."""
LAST_WORDS = 15


def main() -> int:
    arguments = _arguments()
    try:
        require_cuda(0)
    except UsageError as error:
        sys.stderr.write(f"gpu-check needs a GPU: {error}\n")
        return 2
    folder: Path = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * arguments.minutes
    for part in PARTS:
        if arguments.parts and part.name not in arguments.parts:
            continue
        _run(part, folder, until)
        write_page(folder)
    done = [result_of(folder, part.name) for part in PARTS]
    return 0 if all(result is not None and result.get("holds", True) for result in done) else 1


def _run(part: Part, folder: Path, until: float) -> None:
    """Unless it was run before."""
    if result_of(folder, part.name) is not None:
        return
    left_s = min(part.most_s, until - time.monotonic())
    if left_s < part.least_s:
        if failure_of(folder, part.name) is None:
            save_failure(folder, part.name, "not begun: time was up")
        return
    sys.stderr.write(f"{part.name}: {part.what}\n")
    command = [sys.executable, *COMMAND, part.name, str(folder)]
    try:
        ended = subprocess.run(command, timeout=left_s, capture_output=True, text=True, check=False, cwd=ROOT)
    except subprocess.TimeoutExpired:
        save_failure(folder, part.name, f"ended after {left_s:.0f} s, unfinished")
        return
    if ended.returncode:
        save_failure(folder, part.name, "\n".join(ended.stderr.strip().splitlines()[-LAST_WORDS:]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of results, kept between runs")
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="after which no part is begun, and one that runs ends"
    )
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="only these")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
