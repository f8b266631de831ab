"""Runs one part of the check in this process: `python -m expertflow.benchmarks.gpu.part PART FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from .parts import PARTS
from .results import save_result


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    part = next(part for part in PARTS if part.name == name)
    save_result(folder, name, part.run(folder))


if __name__ == "__main__":
    main()
